"""A denoiser with a sampler, in the role of a Generator: for what measures, draws or compares a diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.ablation import DISCRETIZATIONS, ablation_sampler
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.sampling.seeded import SeedNoise, image_latents

STEPS = 18
_ABLATION = ("solver", "disc", "schedule", "scaling")  # options that only the ablation sampler has
_ARGUMENTS = {"steps": "num_steps", "disc": "discretization"}  # what the samplers call some options


class DiffusionSampler(Generator):
    """Images by Heun's sampler, or with some options by EDM's ablation sampler; latents are the initial noise.

    Args:
        denoiser: kept as `.network`.
        options: those named in `options`, for `heun_sampler` and `ablation_sampler`.

    Raises:
        UserError: for noise levels that cannot be stepped through, and for options that have no effect.
    """

    kind = "diffusion teacher"
    options = ("steps", "sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise", *_ABLATION)
    network: Denoiser

    def __init__(self, denoiser: Denoiser, **options: Any) -> None:
        super().__init__()
        self.network = denoiser
        self.img_resolution = denoiser.img_resolution
        self.img_channels = denoiser.img_channels
        self.label_dim = denoiser.label_dim
        check_sampler(denoiser, options)
        sampler: Callable[..., Tensor] = ablation_sampler if options.keys() & set(_ABLATION) else heun_sampler
        arguments = {_ARGUMENTS.get(name) or name: value for name, value in ({"steps": STEPS} | options).items()}
        self.sampler = partial(sampler, denoiser, **arguments)

    def with_options(self, **options: Any) -> DiffusionSampler:
        super().with_options(**options)
        return DiffusionSampler(self.network, **options)

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n,C,H,W]; rng holds n streams."""
        if len(rng) != n:
            raise ValueError(f"{n} latents from {len(rng)} random streams; one stream a sample is needed")
        return rng.normal(self.img_channels, self.img_resolution, self.img_resolution)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,C,H,W]; labels [B,label_dim] one-hot, None the null label; rng: of S_churn's noise. No gradient."""
        return self.sampler(z, labels, noise_source=None if rng is None else rng.normal).float()

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: int | None = None) -> Tensor:
        noise = SeedNoise(seeds, next(self.parameters()).device)
        z, labels = image_latents(self, noise, class_index)
        return self.sampler(z, labels, noise_source=partial(noise.normal, dtype=torch.float64))


def check_sampler(denoiser: Denoiser, given: dict[str, Any]) -> None:
    """Raises UserError for noise levels that cannot be stepped through, and for options that have no effect."""
    disc = given.get("disc", "edm")
    low, high = DISCRETIZATIONS[disc]
    low, high = given.get("sigma_min", low), given.get("sigma_max", high)
    if not low < high:
        raise UserError(f"--sigma-min={low:g} is not below --sigma-max={high:g}")
    known = (denoiser.sigma_min, denoiser.sigma_max)
    if not max(low, known[0]) < min(high, known[1]):
        raise UserError(
            f"--sigma-min={low:g} and --sigma-max={high:g}: the network knows noise levels from {known[0]:g} "
            f"to {known[1]:g}; choose levels among these"
        )
    if "rho" in given and disc != "edm":
        raise UserError(f"--rho={given['rho']:g} is for --disc=edm, not {disc}: leave it out")
    for name in ("S_min", "S_max", "S_noise"):
        if name in given and not given.get("S_churn"):
            raise UserError(f"--{name}={given[name]:g} needs --S_churn above 0: leave it out, or give both")
