"""Class labels as the networks take them."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Class indices int64 [n] -> labels float32 [n,label_dim], on the indices' device.

    Unlike torch.nn.functional.one_hot it does not read the indices, so a GPU is not waited for.
    """
    return (classes[:, None] == torch.arange(label_dim, device=classes.device)).float()
