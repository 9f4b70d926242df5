"""The kernel distance of two sets of features (Binkowski et al. 2018, arXiv 1801.01401; of Inception's features KID).

It is the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3. Its unbiased estimate, from
random subsets of m images of each set, is averaged over the subsets:

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
    """Returns the mean over the subsets; it can be below 0, because the estimate is unbiased.

    Args:
        reals, fakes: features [N,dim] and [M,dim]; the distance is computed in float64.
        num_subsets: number of random subsets.
        max_subset_size: images of each set in a subset; if a set has fewer, as many as it has.
        random: chooses the subsets; None chooses the same ones in each call.

    Raises:
        UserError: if either set has fewer than 2 images.
    """
    size = min(len(reals), len(fakes), max_subset_size)
    if size < 2:
        raise UserError(f"a kernel distance needs 2 images or more, not {len(reals)} and {len(fakes)}")
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
