"""R3GAN's generator as a student (Huang et al. 2024, arXiv 2501.05441)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.interfaces import Generator
from stylegan_di.labels import Chosen
from stylegan_di.networks import r3gan
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.seeded import numpy_latents
from stylegan_di.students.stylegan2 import checked_labels
from stylegan_di.torch_utils.precision import at_least_float32, moved


class R3GANStudent(Generator):
    """images = network(z, labels). It has no styles, no noise, no truncation and no running means.

    Args:
        network: R3GAN's Generator, kept as `.network`.
    """

    kind = "R3GAN"
    network: r3gan.Generator

    def __init__(self, network: r3gan.Generator) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.c_dim

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n, z_dim]."""
        return rng.of(n).normal(self.network.z_dim)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,z_dim]; labels [B,label_dim] one-hot; rng is not needed: nothing else is random.

        Raises:
            UserError: if labels are missing or given against the network's nature.
        """
        return at_least_float32(self.network(z, checked_labels(labels, self.label_dim, z.shape[0])))

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> R3GANStudent | None:
        return cls(network) if isinstance(network, r3gan.Generator) else None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """R3GAN's three networks; a training fills in its D."""
        network = trained.network if isinstance(trained, R3GANStudent) else self.network
        return {"G": network, "D": None, "G_ema": self.network}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"training_set_kwargs": dict(data)}

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        """Latents are numpy's of each seed, from 0 to 2^32 - 1, as for StyleGAN2."""
        device = next(self.parameters()).device
        z, labels = numpy_latents(seeds, self.network.z_dim, self.label_law, class_index)
        return self(moved(z, device), None if labels is None else labels.to(device))
