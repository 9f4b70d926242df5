"""Recall in each class: whether the generator still makes all kinds of shirts, not only all kinds of clothes.

In one class, it is the share of the real images inside the manifold of the generated images of the class, as in
`precision_recall`. Precision and recall over all classes overlook a class whose images have become alike, because
images of its neighbours fill its place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.precision_recall import precision_recall


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
        own_reals, own_fakes = reals[_rows(real_labels, label, reals)], fakes[_rows(fake_labels, label, fakes)]
        if min(len(own_reals), len(own_fakes)) <= k:
            raise UserError(
                f"recall by class needs more than {k} real and generated images of each class; of class {label} there "
                f"are {len(own_reals)} and {len(own_fakes)}"
            )
        recalls.append(precision_recall(own_reals, own_fakes, k=k)[1])
    return float(np.mean(recalls)), min(recalls)


def _rows(labels: np.ndarray, label: int, like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(labels == label)).to(like.device)
