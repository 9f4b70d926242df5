"""Two plain figures of pixels: how much fine detail images have, and how much of them is black.

They describe images and do not judge them; compare them with those of real images (`calc_metrics.py --images`). A
blurred generator has less detail than they, and one that does not reach its black background fewer black pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.interfaces import FeatureExtractor


class Texture(FeatureExtractor):
    """Turns images into [detail, black].

    Detail is the mean of |x[i,j] - x[i+1,j] - x[i,j+1] + x[i+1,j+1]| over pixels and channels, from 0 to 510: 0 for
    edges along rows or columns, large for noise. Black is the share of pixels whose channels are all 0, from 0 to 1.
    """

    name = "texture"
    dim = 2

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255, 2 pixels per side or more -> float32 [B,2]."""
        detail = images.float().diff(dim=2).diff(dim=3).abs().mean(dim=[1, 2, 3])
        black = (images == 0).all(dim=1).float().mean(dim=[1, 2])
        return torch.stack([detail, black], dim=1)
