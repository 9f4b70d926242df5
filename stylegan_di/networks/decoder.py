"""A decoder as variational autoencoders have: a few vectors in, an image out; no modulation, no mapping."""

from __future__ import annotations

from torch import Tensor
from torch.nn import ModuleList
from torch.nn import functional as F

from stylegan_di.networks.edm_layers import Conv2d, GroupNorm, Linear, with_labels
from stylegan_di.torch_utils.persistence import PersistentModule


class Decoder(PersistentModule):
    """A linear layer to 4x4, then two residual convolutions a resolution, doubled by repetition.

    Args:
        img_resolution: 4 times a power of two.
        img_channels, label_dim: of the images and classes.
        z_dim: dimension of the latents.
        width: channels, a multiple of 8.

    Raises:
        ValueError: for another resolution or width.
    """

    def __init__(
        self, img_resolution: int, img_channels: int, label_dim: int, z_dim: int = 64, width: int = 64
    ) -> None:
        super().__init__()
        doublings = (img_resolution // 4).bit_length() - 1
        if doublings < 0 or img_resolution != 4 * 2**doublings or width % 8:
            raise ValueError(f"resolution {img_resolution} is not 4 times a power of two, or width {width} not of 8")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.latent_shape = (z_dim,)
        self.width, self.doublings = width, doublings
        self.start = Linear(z_dim + label_dim, width * 16)
        self.norms = ModuleList(GroupNorm(width) for _ in range(2 * doublings + 2))
        self.convs = ModuleList(Conv2d(width, width, 3, init_weight=0.5) for _ in range(2 * doublings + 2))
        self.out = Conv2d(width, img_channels, 3, init_weight=0.1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [B,z_dim], labels [B,label_dim] -> images [B,C,H,W]."""
        x = self.start(with_labels(z, labels)).unflatten(1, (self.width, 4, 4))
        for index, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            if index and index % 2 == 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            assert isinstance(norm, GroupNorm)
            x = x + conv(norm.then_silu(x))
        return self.out(F.silu(x))
