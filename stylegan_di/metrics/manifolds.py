"""Shares of images inside the manifold of others: precision and recall, density and coverage, recall in each class.

Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991): the manifold of a set of features is the union of
balls around each of them, out to its k-th nearest other one. Precision is the share of fakes inside the manifold of the
reals, recall the share of reals inside that of the fakes.

Density and coverage (Naeem et al. 2020, arXiv 2002.09797) take balls around the real features, and none around the
fakes, whose outliers would make a large manifold of their own:

    density  = mean over fakes of (the number of balls that the fake is in) / k        from 0 on; can be above 1
    coverage = share of the balls that a fake is in                                    in [0,1]

As in the authors' code a feature at the radius is outside; so a set without ties has the density 1 with itself. Of two
independent sets of one law and of one size the density is 1 on average, and the coverage about 1 - 2^-k.

Recall in each class tells whether the generator still makes all kinds of shirts, not only all kinds of clothes.
Precision and recall over all classes overlook a class whose images have become alike, because images of its neighbours
fill its place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.precision import as_float64

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
    return float(as_float64(torch.cat(precise)).mean()), float(as_float64(recalled).mean())


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """The distance [N] from each feature to its k-th nearest other one; the nearest of all is the feature itself."""
    chunks = features.split(CHUNK)
    return torch.cat([torch.cdist(rows, features).topk(k + 1, largest=False).values[:, -1] for rows in chunks])


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


def class_recall(
    reals: Tensor, real_labels: np.ndarray, fakes: Tensor, fake_labels: np.ndarray, *, k: int = 3
) -> tuple[float, float]:
    """Returns the mean over the classes and the lowest class's, each in [0,1].

    Args:
        reals, fakes: features [N,dim] and [M,dim], both float32 or both float64.
        real_labels, fake_labels: class indices int64 [N] and [M].
        k: the neighbour whose distance is a ball's radius.

    Raises:
        UserError: if a class that occurs has no k neighbours among the reals or the fakes.
    """
    recalls = []
    for label in np.union1d(real_labels, fake_labels):
        own_reals = reals[torch.from_numpy(np.flatnonzero(real_labels == label)).to(reals.device)]
        own_fakes = fakes[torch.from_numpy(np.flatnonzero(fake_labels == label)).to(fakes.device)]
        if min(len(own_reals), len(own_fakes)) <= k:
            raise UserError(
                f"recall by class needs more than {k} real and generated images of each class; of class {label} there "
                f"are {len(own_reals)} and {len(own_fakes)}"
            )
        recalls.append(precision_recall(own_reals, own_fakes, k=k)[1])
    return float(np.mean(recalls)), min(recalls)
