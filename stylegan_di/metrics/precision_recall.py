"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991).

The manifold of a set of features is the union of balls around each of them, out to its k-th nearest other one.
Precision is the share of fakes inside the manifold of the reals, recall the share of reals inside that of the fakes.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1000  # rows of the distance matrix at a time


def precision_recall(reals: Tensor, fakes: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Precision and recall, each in [0,1].

    Args:
        reals, fakes: features [N,dim] and [M,dim] of one dtype (float32 does; float16 moves results by some 1/N).
        k: the neighbour whose distance is a ball's radius.
    """
    return _share_inside(fakes, reals, k), _share_inside(reals, fakes, k)


def _share_inside(probes: Tensor, manifold: Tensor, k: int) -> float:
    if len(manifold) <= k:
        raise ValueError(f"{len(manifold)} features have no {k} neighbours each")
    # The nearest of all is the feature itself, hence k + 1; a probe on a ball's surface is inside.
    radii = torch.cat([torch.cdist(x, manifold).kthvalue(k + 1, dim=1).values for x in manifold.split(CHUNK)])
    inside = [(torch.cdist(x, manifold) <= radii).any(dim=1).sum() for x in probes.split(CHUNK)]
    return float(torch.stack(inside).sum()) / len(probes)
