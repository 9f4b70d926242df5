"""DPM-Solver++(2M): a second-order multistep sampler that evaluates the denoiser once per step.

Lu et al. 2022, arXiv 2211.01095, algorithm 2, for variance-exploding noise. With lambda = -ln sigma the probability
flow is d(x / sigma) / d lambda = D(x; sigma) / sigma, linear except for D. A step from sigma_i to sigma_{i+1} of length
h = lambda_{i+1} - lambda_i is exact where D is linear in lambda:

    x_{i+1} = (sigma_{i+1} / sigma_i) x_i - (exp(-h) - 1) D',    D' = D_i + h / (2 h_last) (D_i - D_{i-1})

The first step takes D' = D_0, and the last one, to sigma = 0, is D itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser
from stylegan_di.sampling.heun import sigma_steps
from stylegan_di.torch_utils.precision import moved


@torch.no_grad()
def dpm_solver(
    denoiser: Denoiser,
    latents: Tensor,
    labels: Tensor | None = None,
    *,
    num_steps: int = 8,
    sigma_min: float = 0.02,
    sigma_max: float = 40,
    rho: float = 7,
) -> Tensor:
    """Turns noise into images with a denoiser, evaluated num_steps times, each in the denoiser's own precision.

    Arguments and images as `heun.heun_sampler`'s.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}; accepted: 1 or more")
    low, high = max(sigma_min, denoiser.sigma_min), min(sigma_max, denoiser.sigma_max)
    sigmas = moved(denoiser.round_sigma(sigma_steps(num_steps, low, high, rho)), latents.device)
    x = latents.to(sigmas.dtype) * sigmas[0]
    before, h_before = torch.zeros_like(x), math.inf  # makes the first step first-order
    for step, sigma in enumerate(sigmas):
        denoised = denoiser(x, sigma, labels).to(x.dtype)
        if step + 1 == num_steps:
            break
        h = float((sigma / sigmas[step + 1]).log())
        x = math.exp(-h) * x - math.expm1(-h) * (denoised + h / (2 * h_before) * (denoised - before))
        before, h_before = denoised, h
    return denoised
