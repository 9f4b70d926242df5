"""Gaussians, whose denoisers, density ratios and divergences are known exactly, in the roles of the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.interfaces import Critic, Denoiser
from stylegan_di.loss_di import Divergence, Noised


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2) in every dimension by itself."""

    mean: float
    std: float

    def variance(self, sigma: Any) -> Any:
        """After noising; of the type of sigma, a Tensor or a float."""
        return self.std**2 + sigma**2

    def log_density(self, noisy: Tensor, sigma: Tensor | float) -> Tensor:
        """Of noised samples, without the constant ln sqrt(2 pi), as noisy; sigma broadcasts."""
        variance = torch.as_tensor(self.variance(sigma), dtype=torch.float64)
        return -((noisy - self.mean) ** 2) / (2 * variance) - variance.log() / 2

    def denoised(self, noisy: Tensor, sigma: Tensor | float) -> Tensor:
        """(x_s std^2 + mean sigma^2) / (std^2 + sigma^2), as noisy; sigma broadcasts."""
        return (noisy * self.std**2 + self.mean * sigma**2) / self.variance(sigma)


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(mean, std^2)."""

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.gaussian = Gaussian(mean, std)  # type: ignore[arg-type]

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.gaussian.denoised(x, per_sample(sigma, x))


class BlendedDenoiser(Denoiser):
    """RealUID's minimiser (beta q D^q + (1 - beta) p D^p) / (alpha q + (1 - alpha) p) for samples of one dimension."""

    def __init__(self, alpha: float, beta: float, student: Gaussian, reals: Gaussian) -> None:
        super().__init__()
        self.alpha, self.beta, self.student, self.reals = alpha, beta, student, reals

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        level = per_sample(sigma, x)
        r = (self.reals.log_density(x, level) - self.student.log_density(x, level)).exp()  # p / q
        blend = self.beta * self.student.denoised(x, level) + (1 - self.beta) * r * self.reals.denoised(x, level)
        return blend / (self.alpha + (1 - self.alpha) * r)


class GaussianCritic(Critic):
    """The exact log ratio of two noised Gaussians, summed over dimensions."""

    def __init__(self, teacher: Gaussian, student: Gaussian) -> None:
        self.teacher, self.student = teacher, student

    def logits(self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        level = per_sample(sigma, x)
        noisy = x + level * noise
        ratio = self.teacher.log_density(noisy, level) - self.student.log_density(noisy, level)
        return ratio.flatten(1).sum(dim=1, keepdim=True)


def draw(n: int, shape: tuple[int, ...] = (1, 1, 1), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """z and noise [n,...], sigma [n] of the default noise law, float64."""
    generator = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn([n, *shape], generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = (torch.randn([n], generator=generator, dtype=torch.float64) * 1.2 - 1.2).exp()
    return z, noise, sigma


def student_loss(
    divergence: Divergence,
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    teacher: Denoiser,
    fake_score: Denoiser,
    labels: Tensor | None = None,
    critic: Critic | None = None,
) -> Tensor:
    """The divergence's loss per sample [B]."""
    return divergence.student_loss(
        Noised(x, noise, sigma, labels, teacher, fake_score, critic, divergence.differentiable)
    )
