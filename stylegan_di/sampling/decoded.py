"""Samples of a diffusion model as images: those of a model of latents are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser, Generator, Space
from stylegan_di.labels import Chosen
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler


def image_sampler(denoiser: Denoiser, **options: Any) -> Generator:
    """The sampler of a denoiser whose samples are images; options as for `DiffusionSampler`."""
    sampler = DiffusionSampler(denoiser, **options)
    return sampler if denoiser.space is None else Decoded(sampler, denoiser.space)


class Decoded(Generator):
    """A sampler of latents whose samples are decoded to images.

    Args:
        latents: makes the latents; its network is this one's.
        space: which they are of; it can decode.
    """

    kind = "diffusion teacher of latents"
    options = DiffusionSampler.options

    def __init__(self, latents: DiffusionSampler, space: Space) -> None:
        super().__init__()
        assert space.images is not None
        self.latents, self.space = latents, space
        self.network = latents.network
        self.training = latents.training
        self.img_resolution, self.img_channels = space.images
        self.label_dim, self.known_labels = latents.label_dim, latents.known_labels

    def _with(self, **options: Any) -> Decoded:
        return Decoded(self.latents.with_options(**options), self.space)

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return self.latents.sample_latents(n, rng=rng)

    @torch.no_grad()
    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """Samples and decodes, without gradient."""
        return self.space.decode(self.latents(z, labels, rng=rng))

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        return self.space.decode(self.latents.draw(seeds, class_index=class_index).float())
