"""Images as a viewer sees them: clipped to [-1, 1], in any other space (--clip)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_di.interfaces import Space


class Shown(Space):
    """Clips images to the values that are displayed, then encodes them.

    Where a pixel is beyond the ends it looks the same however far it is, and a background that ought to be black may
    stay below -1: without this, errors of teacher and student around -1 make half of it grey. So a gradient that leads
    further out counts for nothing there. Of one that leads back a share counts, `back`: with 0 the background stays
    black whatever noise says, but a pixel that ought to be grey stays white, too.
    """

    def __init__(self, inner: Space, back: float = 0.0) -> None:
        self.inner = inner
        self.back = back
        self.resolution, self.channels = inner.resolution, inner.channels

    def encode(self, images: Tensor) -> Tensor:
        shown: Tensor = _Clip.apply(images, self.back)
        return self.inner.encode(shown)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, back: float) -> Tensor:
        ctx.save_for_backward(images)
        ctx.back = back
        return images.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        leads_back = images.sign() == gradient.sign()  # descent subtracts the gradient
        return gradient * torch.where(images.abs() <= 1, 1.0, ctx.back * leads_back), None
