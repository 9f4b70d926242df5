"""Density and coverage (Naeem et al. 2020, arXiv 2002.09797).

Both take balls around the real features, out to the k-th nearest other real one, and none around the fakes, whose
outliers would make a large manifold of their own:

    density  = mean over fakes of (the number of balls that the fake is in) / k        from 0 on; can be above 1
    coverage = share of the balls that a fake is in                                    in [0,1]

As in the authors' code a feature at the radius is outside; so a set without ties has the density 1 with itself. Of two
independent sets of one law and of one size the density is 1 on average, and the coverage about 1 - 2^-k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.precision_recall import CHUNK, neighbour_radii


def density_coverage(reals: Tensor, fakes: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Returns density and coverage.

    Args:
        reals, fakes: features [N,dim] and [M,dim], both float32 or both float64; at most CHUNK rows of their distances
            are in memory at a time.
        k: the neighbour whose distance is a ball's radius.

    Raises:
        UserError: if there are no more than k reals, or no fakes.
    """
    if len(reals) <= k or len(fakes) == 0:
        raise UserError(f"density and coverage need more than {k} real images and a generated one, not {len(reals)} "
                        f"and {len(fakes)}")  # fmt: skip
    center = reals.mean(dim=0)  # this changes no distance, and makes rounding errors smaller
    reals, fakes = reals - center, fakes - center
    inside, covered = 0, 0
    for rows, radii in zip(reals.split(CHUNK), neighbour_radii(reals, k).split(CHUNK), strict=True):
        found = torch.cdist(rows, fakes) < radii[:, None]
        inside += int(found.sum())
        covered += int(found.any(dim=1).sum())
    return inside / (k * len(fakes)), covered / len(reals)
