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
    """

    def __init__(self, resolution: int, channels: int) -> None:
        self.resolution = resolution
        self.channels = channels

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,1 or 3,H,W] of any size -> [B,channels,resolution,resolution]."""
        x = images
        if x.shape[1] == 3 and self.channels == 1:
            x = (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(dim=1, keepdim=True)
        elif x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        size = [self.resolution, self.resolution]
        return x if list(x.shape[2:]) == size else F.interpolate(x, size=size, mode="bicubic", antialias=True)
