"""The kernel distance of two sets of features (Binkowski et al. 2018, arXiv 1801.01401; of Inception's features KID).

The squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3, its unbiased estimate over m images a
side, averaged over random subsets:

    ((sum k(x, x') + sum k(y, y')) / (m - 1) - 2 sum k(x, y) / m) / m    over x' != x and y' != y
"""

from __future__ import annotations

import numpy as np

from stylegan_di.dnnlib.util import UserError


def kernel_distance(
    reals: np.ndarray,
    fakes: np.ndarray,
    *,
    num_subsets: int = 100,
    max_subset_size: int = 1000,
    random: np.random.RandomState | None = None,
) -> float:
    """The mean over subsets; may be below 0, as the estimate is unbiased.

    Args:
        reals, fakes: features [N,dim] and [M,dim]; computed in float64.
        num_subsets: random subsets to average over.
        max_subset_size: images of each in a subset; fewer where there are not so many.
        random: chooses the subsets; None: the same ones at each call.

    Raises:
        UserError: if either has fewer than 2 images.
    """
    size = min(len(reals), len(fakes), max_subset_size)
    if size < 2:
        raise UserError(f"a kernel distance takes 2 images or more, not {len(reals)} and {len(fakes)}")
    random = np.random.RandomState(0) if random is None else random
    total = 0.0
    for _ in range(num_subsets):
        x = fakes[random.choice(len(fakes), size, replace=False)].astype(np.float64)
        y = reals[random.choice(len(reals), size, replace=False)].astype(np.float64)
        within = _kernel(x, x) + _kernel(y, y)
        total += (within.sum() - np.trace(within)) / (size - 1) - 2 * _kernel(x, y).sum() / size
    return float(total / num_subsets / size)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
