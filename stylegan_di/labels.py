"""Class labels as the networks take them."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Converts class indices int64 [n] to labels float32 [n,label_dim] on the same device.

    Unlike torch.nn.functional.one_hot it does not read the indices, so it does not wait for the GPU.
    """
    return (classes[:, None] == torch.arange(label_dim, device=classes.device)).float()


def chosen_labels(drawn: Tensor, class_index: int | None, label_dim: int) -> Tensor:
    """Returns labels float32 [n,label_dim] of class_index, or if it is None of the drawn classes, int64 [n]."""
    return one_hot(drawn if class_index is None else torch.full_like(drawn, class_index), label_dim)
