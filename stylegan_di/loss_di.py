"""Diff-Instruct: the Integral KL divergence as a gradient on a generator's samples.

Luo et al., "Diff-Instruct", NeurIPS 2023, arXiv 2305.18455. With x = g(z) a sample of the student, n ~ N(0, I),
x_s = x + sigma * n, and denoisers D_p (teacher) and D_q (fake score) evaluated at (x_s, sigma), the scores are
s = (D - x_s) / sigma^2 and the gradient of D_IKL(q, p) = integral w(t) KL(q_t || p_t) dt with respect to x is

    g = w(sigma) * (s_q - s_p) = w(sigma) * (D_q - D_p) / sigma^2                       (their Theorem 3.1)

Two alternating updates use this module: a divergence's `score_loss` trains the fake score on detached samples, and its
`student_loss` moves the student. `IKL` is the method itself; the rest of the family is in `divergences/`. Noise and
sigma are arguments, so every loss is a deterministic function. docs/theory.md derives it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from stylegan_di.diffusion import add_noise, edm_weight, per_sample
from stylegan_di.interfaces import Critic, Denoiser
from stylegan_di.specs import Range, number
from stylegan_di.torch_utils import distributed

Weight = Literal["sigma2", "one", "dmd"]
FDivergence = Literal["reverse_kl", "forward_kl", "js", "hellinger", "jeffreys", "chi2"]
#: h(r) = r^2 f''(r) of f-distill (Xu et al. 2025, arXiv 2502.15681, table 1), r = p / q, up to a factor: what the
#: f-divergence E_q f(r) multiplies reverse KL's gradient by.
F_WEIGHTS: dict[FDivergence, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "hellinger": torch.sqrt,
    "jeffreys": lambda r: 1 + r,
    "chi2": torch.square,
}
EPS = 1e-8  # keeps 1 / mean|x - D_p| finite when the teacher returns its input


def denoising_loss(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    weight: Callable[[Tensor], Tensor] = edm_weight,
) -> Tensor:
    """Denoising score matching, lambda(sigma) |D(x + sigma n; sigma) - x|^2 (arXiv 2206.00364, eq. 2 and table 1).

    Args:
        denoiser: a Denoiser to be trained, or a call of one; gradients flow into it.
        x: clean samples [B,...].
        noise: standard normal, as x.
        sigma: noise levels [B], > 0.
        labels: [B,label_dim] or None.
        weight: lambda, by default (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 with sigma_d = 0.5.

    Returns:
        [B], summed over all but the first dimension.
    """
    denoised = denoiser(add_noise(x, noise, sigma), sigma, labels)
    return weight(sigma) * (denoised - x).square().flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Noised:
    """Samples at one noise level each, and what the networks say of them, asked once.

    Args:
        x: samples [B,...]; of the student's update the leaf that the gradient is taken at.
        noise: standard normal, as x.
        sigma: noise levels [B], > 0.
        labels: [B,label_dim] or None.
        teacher, fake_score: D_p and D_q, in the student's update; their parameters need no gradient.
        critic: where the density ratio comes from, for divergences that need it.
        differentiable: whether gradients flow through the two networks to x.
        known_fake_x0: D_q at the noisy samples, as x, where it is known already.
    """

    x: Tensor
    noise: Tensor
    sigma: Tensor
    labels: Tensor | None
    teacher: Denoiser | None = None
    fake_score: Denoiser | None = None
    critic: Critic | None = None
    differentiable: bool = False
    known_fake_x0: Tensor | None = None

    @cached_property
    def noisy(self) -> Tensor:
        """x + sigma * noise, as x."""
        with torch.set_grad_enabled(self.differentiable):
            return add_noise(self.x, self.noise, self.sigma)

    @cached_property
    def _both_x0(self) -> tuple[Tensor, Tensor] | None:
        """`teacher_x0` and `fake_x0` of one pass, where the two networks share weights; None where they do not."""
        if self.teacher is None or self.fake_score is None or self.known_fake_x0 is not None:
            return None
        with torch.set_grad_enabled(self.differentiable):
            return self.fake_score.beside(self.teacher, self.noisy, self.sigma, self.labels)

    @cached_property
    def teacher_x0(self) -> Tensor:
        """D_p at the noisy samples, as x."""
        assert self.teacher is not None
        if self._both_x0 is not None:
            return self._both_x0[0]
        with torch.set_grad_enabled(self.differentiable):
            return self.teacher(self.noisy, self.sigma, self.labels)

    @cached_property
    def fake_x0(self) -> Tensor:
        """D_q at the noisy samples, as x."""
        if self.known_fake_x0 is not None:
            return self.known_fake_x0
        assert self.fake_score is not None
        if self._both_x0 is not None:
            return self._both_x0[1]
        with torch.set_grad_enabled(self.differentiable):
            return self.fake_score(self.noisy, self.sigma, self.labels)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(p / q) of each sample [B] by the critic's logits, without gradient."""
        if self.critic is None:
            raise ValueError("this divergence takes the density ratio from a critic, and there is none")
        with torch.no_grad():
            return self.critic.logits(self.x, self.noise, self.sigma, self.labels).flatten(1).mean(dim=1)

    @property
    def inverse_teacher_error(self) -> Tensor:
        """DMD's normaliser 1 / mean|x - D_p| of each sample (arXiv 2311.18828, eq. 8), detached, [B,1,...]."""
        error = (self.x - self.teacher_x0).detach().abs()
        return 1 / error.mean(dim=list(range(1, error.ndim)), keepdim=True).add(EPS)


class Divergence(ABC):
    """How far the student's distribution is from the teacher's, as a loss whose gradient moves the student.

    A divergence is a frozen dataclass; its fields are its parameters on the command line.
    """

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through the two networks to x."""
        return False

    @property
    def needs_critic(self) -> bool:
        """Whether `student_loss` asks for `Noised.log_ratio`."""
        return False

    @property
    def needs_reals(self) -> bool:
        """Whether `score_loss` wants real samples."""
        return False

    @abstractmethod
    def student_loss(self, at: Noised) -> Tensor:
        """Loss per sample [B], summed over the other dimensions; only its gradient in `at.x` has a meaning."""

    def score_loss(
        self,
        fake_score: Callable[..., Tensor],
        at: Noised,
        weight: Callable[[Tensor], Tensor] = edm_weight,
        reals: Noised | None = None,
    ) -> Tensor:
        """The fake score's loss per sample [B]; gradients flow into it.

        Args:
            fake_score: D_q, to be trained.
            at: the student's samples, detached.
            weight: of the loss by noise level, see `denoising_loss`.
            reals: as many real samples at the same noise levels, where `needs_reals`.
        """
        return denoising_loss(fake_score, at.x, at.noise, at.sigma, at.labels, weight)


def f_weight(log_ratio: Tensor, f: FDivergence, clip: float) -> Tensor:
    """h(r) of samples [B] by their log r [B], r kept in [1/clip, clip], divided by its mean over all processes."""
    weight = F_WEIGHTS[f](log_ratio.clamp(-math.log(clip), math.log(clip)).exp())
    mean = weight.mean()
    distributed.average([mean])
    return weight / mean


@dataclass(frozen=True)
class IKL(Divergence):
    """Integral KL: the gradient of `student_loss` in x is k h (D_q - D_p).

    The loss is the pseudo-loss <stopgrad(g), x>: its value says nothing about convergence. `weight` is 'sigma2':
    w = sigma^2, k = 1; 'one': w = 1, k = 1 / sigma^2; 'dmd': k = 1 / mean|x - D_p| (arXiv 2311.18828, eq. 8).
    `f` makes it another f-divergence (`f_weight`), the density ratio coming from a critic; `clip` bounds that ratio.
    """

    weight: Weight = "sigma2"
    f: FDivergence = "reverse_kl"
    clip: float = number(10.0, Range(1, open_low=True))

    def __post_init__(self) -> None:
        if self.f == "reverse_kl" and self.clip != 10:
            raise ValueError(f"clip={self.clip:g} has no effect with f=reverse_kl, which weights all samples alike")

    @property
    def needs_critic(self) -> bool:
        return self.f != "reverse_kl"

    def student_loss(self, at: Noised) -> Tensor:
        gradient = (at.fake_x0 - at.teacher_x0).detach()
        if self.weight == "one":
            gradient = gradient / per_sample(at.sigma, at.x).square()
        elif self.weight == "dmd":
            gradient = gradient * at.inverse_teacher_error
        if self.needs_critic:
            gradient = gradient * per_sample(f_weight(at.log_ratio, self.f, self.clip), at.x)
        return (gradient * at.x).flatten(1).sum(dim=1)
