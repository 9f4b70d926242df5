"""The three roles everything is written against: Denoiser, Generator, FeatureExtractor.

Teacher and fake score are two roles of one Denoiser type. Losses, metrics and grids know a generator only as
something with latents, labels and images.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from stylegan_di.random import SampleRandom


class Denoiser(torch.nn.Module):
    """D(x; sigma) = E[x0 | x = x0 + sigma * n], n ~ N(0, I) (Karras et al. 2022, arXiv 2206.00364, eq. 2-3)."""

    img_resolution: int
    img_channels: int
    label_dim: int  # 0: unconditional
    sigma_min: float
    sigma_max: float

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B,C,H,W] noisy image; sigma [B] or scalar, > 0; labels [B,label_dim] one-hot or None.

        Returns the denoised image [B,C,H,W], float32 (float64 for a network made `.double()`).
        """


class Generator(torch.nn.Module):
    """A map from latents to images whose samples are differentiable in its parameters."""

    network: torch.nn.Module  # the bare network, for what is particular to it
    img_resolution: int
    img_channels: int
    label_dim: int  # 0: unconditional

    @abstractmethod
    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Latents of n samples, [n, ...] float32; rng holds n streams."""

    @abstractmethod
    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z latents; labels [B,label_dim] one-hot or None; rng: source of any noise inside, None for fixed noise.

        Returns images [B,C,H,W], float32, nominally in [-1,1].
        """


class FeatureExtractor(torch.nn.Module):
    """Images to feature vectors; resizing to what the network wants is part of it."""

    name: str
    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> features float32 [B,dim]."""


class Classifier(FeatureExtractor):
    """An extractor whose features a last layer turns into class probabilities."""

    @abstractmethod
    def probabilities(self, features: Tensor) -> Tensor:
        """features [B,dim] -> probabilities [B,classes], as the Inception score takes them: without the bias."""
