"""A denoising network run once, or a few times: what a teacher is distilled to.

One step is Luo et al.'s (2023, arXiv 2305.18455, section 3.3). Several are consistency models' multistep sampling (Song
et al. 2023, arXiv 2303.01469, algorithm 1), trained as DMD2 does (arXiv 2405.14867, section 4.4): on what the student
itself makes of the levels before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import Chosen
from stylegan_di.networks.edm import Precond
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.seeded import SeedNoise, image_latents
from stylegan_di.torch_utils.precision import at_least_float32

SIGMA_END = 0.2  # which the levels of several steps would reach after the last
MAX_STEPS = 64


def network_of_teacher(teacher: Denoiser, refused: str) -> Precond:
    """A copy of a teacher's network, from which a student starts.

    Raises:
        UserError: the teacher is not one network of EDM's form; `refused` says what follows from that.
    """
    try:
        network = teacher.trainable_copy().entries().get("ema")
    except UserError:  # it has no form in a snapshot, so a student of its kind would have none either
        network = None
    if not isinstance(network, Precond):
        raise UserError(f"a {type(teacher).__name__} {refused}")
    return network


class OneStepStudent(Generator):
    """images = x_steps of x_i = D(x_(i-1) + sigma_i z_i; sigma_i), x_0 = 0, z standard normal.

    The levels fall geometrically, sigma_i = sigma_init (SIGMA_END / sigma_init)^((i - 1) / steps). If it `learns`, a
    sample is x_i for an i drawn uniformly, and gradients flow through the last denoising alone.

    Args:
        network: a preconditioned network, kept as `.network`.
        sigma_init: the noise level at which it is run first, > 0.
        steps: how often it is run.
    """

    kind = "one-step student"
    network: Precond
    level_of_step: Tensor

    def __init__(self, network: Precond, sigma_init: float, steps: int = 1) -> None:
        super().__init__()
        ratio = SIGMA_END / sigma_init
        self.levels = tuple(sigma_init * ratio ** (index / steps) for index in range(steps))
        self.register_buffer("level_of_step", torch.tensor(self.levels), persistent=False)
        self.network = network
        self.training = False
        self.sigma_init = float(sigma_init)
        self.img_resolution, self.img_width = network.img_resolution, network.img_width
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim

    @classmethod
    def of_teacher(cls, teacher: Denoiser, sigma_init: float, steps: int = 1) -> OneStepStudent:
        """A student that starts as a copy of the teacher's network.

        Raises:
            UserError: the teacher is not one network of EDM's form.
        """
        refused = "cannot be distilled to one step; give --gan-pkl, a GAN to refine"
        return cls(network_of_teacher(teacher, refused), sigma_init, steps)

    def train(self, mode: bool = True) -> OneStepStudent:
        """The network stays in evaluation mode: dropout is for denoisers; here an image is a function of its latent."""
        return super().train(False)

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n,C,H,W], or of several steps [n,steps,C,H,W]."""
        return rng.of(n).normal(*self._latent_shape())

    def _latent_shape(self) -> tuple[int, ...]:
        return self.image_shape if len(self.levels) == 1 else (len(self.levels), *self.image_shape)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z as `sample_latents` draws it; labels [B,label_dim] one-hot, None the null label.

        rng: draws at which step a sample ends if the student `learns`; else nothing but z is random.
        """
        if len(self.levels) == 1:
            images = self._denoised(self.sigma_init * z, self.sigma_init, labels)
        elif self.learns and rng is not None:
            images = self._at_drawn_step(z, labels, rng.integers(len(self.levels)))
        else:
            images = torch.zeros_like(z[:, 0])
            for index, level in enumerate(self.levels):
                images = self._denoised(images + level * z[:, index], level, labels)
        return at_least_float32(images)

    def _denoised(self, x: Tensor, level: float, labels: Tensor | None) -> Tensor:
        return self.network(x, torch.full([x.shape[0]], level, dtype=x.dtype, device=x.device), labels)

    def _at_drawn_step(self, z: Tensor, labels: Tensor | None, last: Tensor) -> Tensor:
        """Each sample after its step last [B], with gradients of that step alone.

        All samples take all steps but the last one of all, so that no shape depends on what is drawn.
        """
        reached = [torch.zeros_like(z[:, 0])]
        with torch.no_grad():
            for index, level in enumerate(self.levels[:-1]):
                reached.append(self._denoised(reached[-1] + level * z[:, index], level, labels).to(z))
        own = torch.arange(len(z), device=z.device)
        sigma = self.level_of_step[last].to(z)
        return self.network(torch.stack(reached)[last, own] + per_sample(sigma, z[:, 0]) * z[own, last], sigma, labels)

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        noise = SeedNoise(seeds, next(self.parameters()).device)
        z, labels = image_latents(self, noise, class_index)
        if len(self.levels) > 1:  # the first step's noise is drawn as that of a single step
            z = torch.cat([z[:, None], noise.normal(len(self.levels) - 1, *z.shape[1:])], dim=1)
        return self(z, labels)

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
        steps = extras.get("student_steps", 1)
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise UserError(f"student_steps={str(steps)[:40]}; accepted are whole numbers from 1 to {MAX_STEPS}")
        return cls(network, sigma_init, steps)

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """EDM's entry; `extras` tells it from a teacher's."""
        return {"ema": self.network}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        steps = {} if len(self.levels) == 1 else {"student_steps": len(self.levels)}
        return {"dataset_kwargs": dict(data), "sigma_init": self.sigma_init} | steps
