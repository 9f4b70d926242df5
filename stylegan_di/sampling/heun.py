"""EDM's sampler: Heun's second-order method on the probability flow, with optional stochasticity ("churn").

Karras et al. 2022, arXiv 2206.00364, algorithm 2 (algorithm 1 for S_churn = 0), eq. 5 for the noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser
from stylegan_di.torch_utils.precision import moved


def sigma_steps(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Returns noise levels from sigma_max to sigma_min, uniform in sigma^(1/rho) (eq. 5): [num_steps] float64."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


@torch.no_grad()
def heun_sampler(
    denoiser: Denoiser,
    latents: Tensor,
    labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    noise_source: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Turns noise into images with a denoiser, evaluated 2 * num_steps - 1 times, each in the denoiser's own precision.

    Args:
        denoiser: D(x; sigma); [sigma_min, sigma_max] is clipped to its range, and levels are rounded to those it knows.
        latents: standard normal [B,C,H,W].
        labels: [B,label_dim] one-hot or None.
        num_steps: number of noise levels, >= 1.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the spacing; larger values put more levels near sigma_min.
        S_churn: strength of the stochasticity; 0 for a deterministic sampler.
        S_min, S_max: noise levels between which it is applied.
        S_noise: standard deviation of the added noise; slightly above 1 counteracts loss of detail.
        noise_source: noise_source(C, H, W) returns standard normal numbers [B,C,H,W], such as `SampleRandom.normal`;
            it is called once per step, in order, when S_churn > 0.

    Returns:
        Images [B,C,H,W] float64 (float32 on a device without it), nominally in [-1,1].
    """
    if S_churn > 0 and noise_source is None:
        raise ValueError(f"S_churn={S_churn} adds noise: noise_source must be given")
    steps = sigma_steps(num_steps, max(sigma_min, denoiser.sigma_min), min(sigma_max, denoiser.sigma_max), rho)
    steps = torch.cat([denoiser.round_sigma(steps), steps.new_zeros(1)])
    steps = moved(steps, latents.device)

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        """Returns dx/dsigma of the probability flow (eq. 1 with sigma(t) = t)."""
        return (x - denoiser(x, sigma, labels).to(x.dtype)) / sigma

    x = latents.to(steps.dtype) * steps[0]
    for sigma, sigma_next in pairwise(steps):
        if noise_source is not None and S_churn > 0:
            gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= sigma <= S_max else 0.0
            sigma_hat = denoiser.round_sigma(sigma + gamma * sigma)
            x = x + (sigma_hat**2 - sigma**2).sqrt() * S_noise * noise_source(*x.shape[1:])
            sigma = sigma_hat
        d = slope(x, sigma)
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * (d + slope(x_next, sigma_next)) / 2
        x = x_next
    return x

