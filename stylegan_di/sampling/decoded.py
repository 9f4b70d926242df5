"""Images of a diffusion model that works on an autoencoder's latents: what a sampler makes, decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylegan_di.interfaces import Generator
from stylegan_di.labels import Chosen
from stylegan_di.random import SampleRandom


class Decoded(Generator):
    """A generator of latents whose samples are decoded to images.

    Args:
        latents: makes the latents; its network is this one's.
        decode: maps its samples [B,C,h,w] to images [B,channels,resolution,resolution].
        resolution, channels: of the images.
    """

    kind = "diffusion teacher of latents"

    def __init__(
        self, latents: Generator, decode: Callable[[Tensor], Tensor], resolution: int, channels: int
    ) -> None:
        super().__init__()
        self.latents, self.decode = latents, decode
        self.network = latents.network
        self.training = latents.training
        self.img_resolution, self.img_channels = resolution, channels
        self.label_dim, self.known_labels = latents.label_dim, latents.known_labels

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return self.latents.sample_latents(n, rng=rng)

    @torch.no_grad()
    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """Samples and decodes, without gradient."""
        return self.decode(self.latents(z, labels, rng=rng))

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        return self.decode(self.latents.draw(seeds, class_index=class_index))
