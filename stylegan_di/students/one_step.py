"""A denoising network run once: what a teacher is distilled to (Luo et al. 2023, arXiv 2305.18455, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.networks.edm import Precond
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.seeded import SeedNoise, image_latents


def network_of_teacher(teacher: Denoiser) -> Precond:
    """A copy of a teacher's network, from which a student starts.

    Raises:
        UserError: the teacher is not one network of EDM's form.
    """
    try:
        network = teacher.trainable_copy().entries().get("ema")
    except UserError:  # it has no form in a snapshot, so a student of its kind would have none either
        network = None
    if not isinstance(network, Precond):
        kind = type(teacher).__name__
        raise UserError(f"a {kind} cannot be distilled to one step; give --gan-pkl, a GAN to refine")
    return network


class OneStepStudent(Generator):
    """images = D(sigma_init * z; sigma_init), z standard normal.

    Args:
        network: a preconditioned network, kept as `.network`.
        sigma_init: the noise level at which it is run, > 0.
    """

    kind = "one-step student"
    network: Precond

    def __init__(self, network: Precond, sigma_init: float) -> None:
        super().__init__()
        self.network = network
        self.training = False
        self.sigma_init = float(sigma_init)
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim

    @classmethod
    def of_teacher(cls, teacher: Denoiser, sigma_init: float) -> OneStepStudent:
        """A student that starts as a copy of the teacher's network.

        Raises:
            UserError: the teacher is not one network of EDM's form.
        """
        return cls(network_of_teacher(teacher), sigma_init)

    def train(self, mode: bool = True) -> OneStepStudent:
        """Stays in evaluation mode: dropout is for training denoisers; here an image is a function of its latent."""
        return super().train(False)

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n,C,H,W]."""
        return rng.of(n).normal(self.img_channels, self.img_resolution, self.img_resolution)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,C,H,W]; labels [B,label_dim] one-hot, None the null label; rng is not needed: nothing else is random."""
        sigma = torch.full([z.shape[0]], self.sigma_init, dtype=z.dtype, device=z.device)
        images = self.network(self.sigma_init * z, sigma, labels)
        return images if images.dtype == torch.float64 else images.float()

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: int | None = None) -> Tensor:
        return self(*image_latents(self, SeedNoise(seeds, next(self.parameters()).device), class_index))

    def compile_network(self) -> None:
        self.network.compile()

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> OneStepStudent | None:
        """A network of EDM's form is a student where `sigma_init` is beside it, else a teacher."""
        sigma_init = extras.get("sigma_init")
        if not isinstance(network, Precond) or sigma_init is None:
            return None
        if not isinstance(sigma_init, int | float) or not 0 < sigma_init < 1e9:
            raise UserError(f"sigma_init={str(sigma_init)[:40]}, which is no noise level")
        return cls(network, sigma_init)

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """EDM's entry; `extras` tells it from a teacher's."""
        return {"ema": self.network}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"dataset_kwargs": dict(data), "sigma_init": self.sigma_init}
