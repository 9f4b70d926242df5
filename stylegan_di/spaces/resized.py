"""Pixels in the teacher's size and colours: --match=resize lets a GAN of any size meet a teacher of any other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan_di.interfaces import Space

LUMA = (0.299, 0.587, 0.114)  # of ITU-R BT.601, which Pillow's "L" uses too


class Resized(Space):
    """Images resized with an antialiased bicubic filter, and made gray or RGB as the teacher's are.

    Images that are already as the teacher's come back as they are. Gradients reach only what the teacher can see: where
    the student's images are larger, their finest detail is left to the student.

    Args:
        resolution, channels: of the images that the teacher was trained on.
        inner: what it sees of these, such as an autoencoder's latents; None for their pixels.
    """

    def __init__(self, resolution: int, channels: int, inner: Space | None = None) -> None:
        self.size, self.depth, self.inner = resolution, channels, inner
        self.resolution = resolution if inner is None else inner.resolution
        self.channels = channels if inner is None else inner.channels

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,1 or 3,H,W] of any size -> x [B,channels,resolution,resolution]."""
        x = images
        if x.shape[1] == 3 and self.depth == 1:
            x = (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(dim=1, keepdim=True)
        elif x.shape[1] == 1 and self.depth == 3:
            x = x.expand(-1, 3, -1, -1)
        size = [self.size, self.size]
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        return x if self.inner is None else self.inner.encode(x)
