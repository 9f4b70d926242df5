"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991).

The manifold of a set of features is the union of balls around each of them, out to its k-th nearest other one.
Precision is the share of fakes inside the manifold of the reals, recall the share of reals inside that of the fakes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError

CHUNK = 1000  # rows of the distance matrix that are computed at a time


def precision_recall(reals: Tensor, fakes: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Returns precision and recall, each in [0,1].

    Args:
        reals, fakes: features [N,dim] and [M,dim], both float32 or both float64.
        k: the neighbour whose distance is a ball's radius.

    Raises:
        UserError: if either set has no k neighbours.
    """
    if min(len(reals), len(fakes)) <= k:
        raise UserError(
            f"precision and recall need more than {k} real and generated images, not {len(reals)} and {len(fakes)}"
        )
    center = reals.mean(dim=0)  # this changes no distance, and makes rounding errors smaller
    reals, fakes = reals - center, fakes - center
    real_radii, fake_radii = neighbour_radii(reals, k), neighbour_radii(fakes, k)
    precise = []
    recalled = torch.zeros(len(reals), dtype=torch.bool, device=reals.device)
    for rows, radii in zip(fakes.split(CHUNK), fake_radii.split(CHUNK), strict=True):
        distances = torch.cdist(rows, reals)
        precise.append((distances <= real_radii).any(dim=1))
        recalled |= (distances <= radii[:, None]).any(dim=0)
    return float(torch.cat(precise).double().mean()), float(recalled.double().mean())


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """The distance [N] from each feature to its k-th nearest other one; the nearest of all is the feature itself."""
    chunks = features.split(CHUNK)
    return torch.cat([torch.cdist(rows, features).topk(k + 1, largest=False).values[:, -1] for rows in chunks])
