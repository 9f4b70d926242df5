"""Diff-Instruct: the Integral KL divergence as a gradient on a generator's samples.

Luo et al., "Diff-Instruct", NeurIPS 2023, arXiv 2305.18455. With x = g(z) a sample of the student, n ~ N(0, I),
x_s = x + sigma * n, and denoisers D_p (teacher) and D_q (fake score) evaluated at (x_s, sigma), the scores are
s = (D - x_s) / sigma^2 and the gradient of D_IKL(q, p) = integral w(t) KL(q_t || p_t) dt with respect to x is

    g = w(sigma) * (s_q - s_p) = w(sigma) * (D_q - D_p) / sigma^2                       (their Theorem 3.1)

Two alternating updates use this module: `denoising_loss` trains the fake score on detached samples, a `Divergence`
moves the student. Noise and sigma are arguments, so every loss is a deterministic function. docs/theory.md derives it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from stylegan_di.diffusion import add_noise, edm_weight, per_sample
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser

Weight = Literal["sigma2", "one", "dmd"]
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
        x: clean images [B,C,H,W].
        noise: standard normal, as x.
        sigma: noise levels [B], > 0.
        labels: [B,label_dim] or None.
        weight: lambda, by default (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 with sigma_d = 0.5.

    Returns:
        [B], summed over pixels.
    """
    denoised = denoiser(add_noise(x, noise, sigma), sigma, labels)
    return weight(sigma) * (denoised - x).square().sum(dim=(1, 2, 3))


def ikl_gradient(x: Tensor, sigma: Tensor, teacher_x0: Tensor, fake_x0: Tensor, weight: Weight) -> Tensor:
    """The gradient of IKL with respect to the samples x [B,C,H,W]: k (D_q - D_p).

    Args:
        x: samples of the student.
        sigma: noise levels [B].
        teacher_x0: D_p at the noised samples.
        fake_x0: D_q at the noised samples.
        weight: 'sigma2': w = sigma^2, k = 1; 'one': w = 1, k = 1 / sigma^2; 'dmd': k = 1 / mean|x - D_p|
            (arXiv 2311.18828, eq. 8).
    """
    difference = fake_x0 - teacher_x0
    if weight == "sigma2":
        return difference
    if weight == "one":
        return difference / per_sample(sigma, x).square()
    return difference * inverse_teacher_error(x, teacher_x0)


def inverse_teacher_error(x: Tensor, teacher_x0: Tensor) -> Tensor:
    """1 / mean|x - D_p| over the pixels of each sample, detached, [B,1,1,1]."""
    return 1 / (x - teacher_x0).detach().abs().mean(dim=(1, 2, 3), keepdim=True).add(EPS)


class Divergence:
    """How far the student's distribution is from the teacher's, as a loss whose gradient moves the student."""

    @abstractmethod
    def student_loss(
        self, x: Tensor, noise: Tensor, sigma: Tensor, teacher: Denoiser, fake_score: Denoiser, labels: Tensor | None
    ) -> Tensor:
        """Loss per sample [B], summed over pixels; only its gradient in x [B,C,H,W] has a meaning.

        noise [B,C,H,W] standard normal, sigma [B] > 0. The networks' parameters need no gradient.
        """


@dataclass(frozen=True)
class IKL(Divergence):
    """Integral KL. The value is the pseudo-loss <stopgrad(g), x>: it says nothing about convergence."""

    weight: Weight = "sigma2"

    def student_loss(
        self, x: Tensor, noise: Tensor, sigma: Tensor, teacher: Denoiser, fake_score: Denoiser, labels: Tensor | None
    ) -> Tensor:
        with torch.no_grad():
            noisy = add_noise(x, noise, sigma)
            gradient = ikl_gradient(
                x, sigma, teacher(noisy, sigma, labels), fake_score(noisy, sigma, labels), self.weight
            )
        return (gradient * x).sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class SiD(Divergence):
    """Score identity distillation: k <D_p - D_q, (D_p - x) - alpha (D_p - D_q)> (Zhou et al. 2024, arXiv 2404.04057).

    k = 1 / mean|x - D_p|, detached. Gradients flow through both networks to x.
    """

    alpha: float = 1.0

    def student_loss(
        self, x: Tensor, noise: Tensor, sigma: Tensor, teacher: Denoiser, fake_score: Denoiser, labels: Tensor | None
    ) -> Tensor:
        noisy = add_noise(x, noise, sigma)
        teacher_x0 = teacher(noisy, sigma, labels)
        difference = teacher_x0 - fake_score(noisy, sigma, labels)
        loss = difference * ((teacher_x0 - x) - self.alpha * difference)
        return (inverse_teacher_error(x, teacher_x0) * loss).sum(dim=(1, 2, 3))


DIVERGENCES: dict[str, type[IKL] | type[SiD]] = {"ikl": IKL, "sid": SiD}


def parse_divergence(text: str) -> IKL | SiD | None:
    """'ikl', 'ikl:weight=dmd', 'sid:alpha=1.2' -> a Divergence; 'none' -> None.

    Raises:
        UserError: unknown name, field or value; the message lists what is accepted.
    """
    if text == "none":
        return None
    name, _, arguments = text.partition(":")
    if name not in DIVERGENCES:
        raise UserError(f"--divergence={text}: unknown divergence '{name}'; accepted: {', '.join(DIVERGENCES)}, none")
    cls = DIVERGENCES[name]
    known = [field.name for field in fields(cls)]
    values: dict[str, str | float] = {}
    for argument in filter(None, arguments.split(",")):
        key, _, value = argument.partition("=")
        if key not in known:
            raise UserError(f"--divergence={text}: '{name}' has no field '{key}'; accepted: {', '.join(known)}")
        values[key] = _field_value(text, key, value)
    return cls(**values)  # type: ignore[arg-type]


def _field_value(text: str, key: str, value: str) -> str | float:
    """The value of a divergence's field, checked."""
    if key == "weight":
        if value not in get_args(Weight):
            raise UserError(f"--divergence={text}: weight={value}; accepted: {', '.join(get_args(Weight))}")
        return value
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 10:
        raise UserError(f"--divergence={text}: {key}={value}; accepted: a number from 0 to 10, such as {key}=1.2")
    return number
