"""Diffusion with variance-exploding noise: noising, scores and EDM's preconditioning, as pure functions.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, arXiv 2206.00364.
A clean image x is noised to x + sigma * n, n ~ N(0, I). A denoiser D(x; sigma) estimates the clean image, and the
score of the noised distribution is (D(x; sigma) - x) / sigma^2 (eq. 3). Images have a standard deviation of about
sigma_data; sigma is a standard deviation in the same units, never a time.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma ([B], [1] or scalar) shaped to broadcast over the samples of x: [-1,1,1,1] for x [B,C,H,W]."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def sigma_from_normal(n: Tensor, P_mean: float, P_std: float) -> Tensor:
    """Noise levels with ln sigma ~ N(P_mean, P_std^2) from standard normal n of any shape (table 1)."""
    return (n * P_std + P_mean).exp()


def add_noise(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x + sigma * noise; x and noise [B,C,H,W], sigma [B] or scalar."""
    return x + per_sample(sigma, x) * noise


def score(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of the log density of noised images at x, [B,C,H,W]: (denoised - x) / sigma^2 (eq. 3)."""
    return (denoised - x) / per_sample(sigma, x).square()


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Loss weight (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 = 1 / c_out^2 (table 1), shaped as sigma."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


class Preconditioning(NamedTuple):
    """The coefficients of D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise) (eq. 7), each shaped as sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """EDM's coefficients: input and target of F have unit variance, and c_out is as small as can be (app. B.6)."""
    total = sigma.square() + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=total.rsqrt(),
        c_noise=sigma.log() / 4,
    )
