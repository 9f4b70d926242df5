"""Images as a viewer sees them: clipped to [-1, 1], in any other space (--clip)."""

from __future__ import annotations

from torch import Tensor

from stylegan_di.interfaces import Space


class Shown(Space):
    """Clips images to the values that are displayed, then encodes them.

    Where a pixel is beyond the ends it looks the same however far it is, so it gets no gradient, and a background that
    ought to be black may stay below -1: without this, errors of teacher and student around -1 make half of it grey.
    """

    def __init__(self, inner: Space) -> None:
        self.inner = inner
        self.resolution, self.channels = inner.resolution, inner.channels

    def encode(self, images: Tensor) -> Tensor:
        return self.inner.encode(images.clamp(-1, 1))
