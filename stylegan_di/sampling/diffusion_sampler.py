"""Wraps a denoiser and a sampler as a Generator, so that a diffusion model can be measured, drawn and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import Chosen
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.ablation import DISCRETIZATIONS, ablation_sampler
from stylegan_di.sampling.dpm_solver import dpm_solver
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.sampling.seeded import SeedNoise, image_latents

DPM_SOLVER = "dpmpp"  # the solver option for DPM-Solver++(2M)
_ABLATION = ("solver", "disc", "schedule", "scaling")  # options that only the ablation sampler has
_CHURN = ("S_churn", "S_min", "S_max", "S_noise")
_DPM_LEVELS = (0.02, 40.0)  # DPM-Solver's default lowest and highest noise levels
_ARGUMENTS = {"steps": "num_steps", "disc": "discretization"}  # option -> the samplers' argument


class DiffusionSampler(Generator):
    """Makes images with a sampler; the latents are the initial noise.

    The sampler is Heun's method in 18 steps by default, DPM-Solver++(2M) in 8 steps for solver='dpmpp', and EDM's
    ablation sampler if another solver, or a disc, schedule or scaling, is given.

    Args:
        denoiser: kept as `.network`.
        options: those named in `options`, passed to `heun_sampler`, `dpm_solver` or `ablation_sampler`.

    Raises:
        UserError: see `check_sampler`.
    """

    kind = "diffusion teacher"
    options = ("steps", "sigma_min", "sigma_max", "rho", *_CHURN, *_ABLATION)
    network: Denoiser

    def __init__(self, denoiser: Denoiser, **options: Any) -> None:
        super().__init__()
        self.network = denoiser
        self.training = denoiser.training
        self.given = dict(options)
        self.img_resolution, self.img_width = denoiser.img_resolution, denoiser.img_width
        self.img_channels = denoiser.img_channels
        self.label_dim, self.known_labels = denoiser.label_dim, denoiser.known_labels
        check_sampler(denoiser, options)
        self.stochastic = options.get("S_churn", 0) > 0
        sampler: Callable[..., Tensor] = ablation_sampler if options.keys() & set(_ABLATION) else heun_sampler
        if options.get("solver") == DPM_SOLVER:
            sampler = dpm_solver
            del options["solver"]
        arguments = {_ARGUMENTS.get(name) or name: value for name, value in options.items()}
        self.sampler = partial(sampler, denoiser, **arguments)

    def _with(self, **options: Any) -> DiffusionSampler:
        return DiffusionSampler(self.network, **(self.given | options))

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Draws standard normal latents [n,C,H,W]; rng holds n streams."""
        return rng.of(n).normal(*self.image_shape)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """Samples from z [B,C,H,W] without gradient; labels [B,label_dim] one-hot or None; rng draws churn's noise."""
        noise = {"noise_source": rng.normal} if rng is not None and self.stochastic else {}
        return self.sampler(z, labels, **noise).float()

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        noise = SeedNoise(seeds, next(self.parameters()).device)
        z, labels = image_latents(self, noise, class_index)
        added = {"noise_source": partial(noise.normal, dtype=torch.float64)} if self.stochastic else {}
        return self.sampler(z, labels, **added)


def check_sampler(denoiser: Denoiser, given: dict[str, Any]) -> None:
    """Raises UserError if the range of noise levels is empty or an option has no effect."""
    disc = given.get("disc", "edm")
    low, high = DISCRETIZATIONS[disc]
    if given.get("solver") == DPM_SOLVER:
        low, high = _DPM_LEVELS
        for name in given.keys() & {"disc", "schedule", "scaling", *_CHURN}:
            raise UserError(f"{option_name(name)}={given[name]} is not for --solver={DPM_SOLVER}: leave it out")
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
