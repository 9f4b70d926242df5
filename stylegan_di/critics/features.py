"""A critic on a frozen teacher's own features: heads on the encoder of its U-Net, at noise levels of a law.

It tells the teacher's samples, or real images, from the student's, with no outside network: relatives are Projected
GANs (Sauer et al. 2021, arXiv 2111.01007), LADD (2403.12015), SiDA (2410.14919) and Diffusion2GAN (2405.05967).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Conv2d, LeakyReLU, Linear, Module, ModuleList, Sequential

from stylegan_di.diffusion import add_noise
from stylegan_di.interfaces import Critic, Denoiser
from stylegan_di.specs import NOT_NEGATIVE, POSITIVE, Range, number


@dataclass(frozen=True)
class FeatureCriticSpec:
    """--critic=features:...; see `FeatureCritic` for scales and width.

    `weight` multiplies the critic's gradient in the student's images. It is scaled to `rms` a pixel over the images
    that are computed together (--batch-gpu), or, where `share` is above 0, to so many times the rms of the divergence's
    own gradient there; it is left at its natural scale where both are 0. `lr` is the heads' learning rate.
    """

    weight: float = number(1.0, POSITIVE)
    rms: float = number(0.05, NOT_NEGATIVE)
    share: float = number(0.0, NOT_NEGATIVE)
    lr: float = number(2e-3, POSITIVE)
    scales: int = number(2, Range(1, 16))
    width: int = number(64, Range(1, 4096))


class Head(Module):
    """Two 3x3 convolutions, the mean of a 1x1 convolution, and a projection of the class: features -> logits [B,1]."""

    def __init__(self, channels: int, width: int, label_dim: int) -> None:
        super().__init__()
        self.layers = Sequential(
            Conv2d(channels, width, 3, padding=1), LeakyReLU(0.2), Conv2d(width, width, 3, padding=1), LeakyReLU(0.2)
        )
        self.out = Conv2d(width, 1, 1)
        self.classes = Linear(label_dim, width, bias=False) if label_dim else None

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        y = self.layers(features)
        logits: Tensor = self.out(y).mean(dim=[2, 3])
        if self.classes is not None and labels is not None:
            logits = logits + (self.classes(labels) * y.mean(dim=[2, 3])).sum(dim=1, keepdim=True)
        return logits


class FeatureCritic(Critic):
    """The sum of a head's logits at each of the coarsest scales of the teacher's encoder.

    Args:
        teacher: frozen; gradients flow through it to x.
        scales: how many of its feature maps have a head at most, from the coarsest on.
        width: channels of the heads.

    Raises:
        UserError: the teacher has no features.
    """

    def __init__(self, teacher: Denoiser, scales: int = 2, width: int = 64) -> None:
        self.teacher = teacher
        parameter = next(teacher.parameters())
        with torch.no_grad():
            x = torch.zeros([1, *teacher.image_shape], dtype=parameter.dtype, device=parameter.device)
            features = teacher.features(x, torch.ones(1, device=x.device))
        self.scales = min(scales, len(features))
        heads = [Head(found.shape[1], width, teacher.label_dim) for found in features[-self.scales :]]
        self.heads = ModuleList(heads)

    def logits(self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        features = self.teacher.features(add_noise(x, noise, sigma), sigma, labels)[-self.scales :]
        found = [head(each.float(), labels) for head, each in zip(self.heads, features, strict=True)]
        return torch.stack(found).sum(dim=0)
