"""Images as a viewer sees them: clipped to [-1, 1], in any other space (--clip)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_di.interfaces import Space

BACK = 0.1  # the share of a gradient that leads a pixel back from beyond an end


class Shown(Space):
    """Clips images to the values that are displayed, then encodes them.

    Where a pixel is beyond the ends it looks the same however far it is, and a background that ought to be black may
    stay below -1: without this, errors of teacher and student around -1 make half of it grey. So a gradient that leads
    further out counts for nothing there. One that leads back counts for a tenth: a pixel that ought to be grey returns,
    and noise, which leads to both sides, does not drive the background out of the black.
    """

    def __init__(self, inner: Space) -> None:
        self.inner = inner
        self.resolution, self.channels = inner.resolution, inner.channels

    def encode(self, images: Tensor) -> Tensor:
        shown: Tensor = _Clip.apply(images)
        return self.inner.encode(shown)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return images.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        leads_back = images.sign() == gradient.sign()  # descent subtracts the gradient
        return gradient * torch.where(images.abs() <= 1, 1.0, BACK * leads_back)
