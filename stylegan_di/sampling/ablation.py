"""EDM's ablation sampler: Euler's or Heun's method with the noise levels, times and scalings of VP, VE, iDDPM and EDM.

Karras et al. 2022 (arXiv 2206.00364), table 1 and algorithm 1, with the churn of algorithm 2. The state is s(t) times
an image with noise sigma(t): `Process` defines these two functions, and `noise_levels` the levels to step through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from stylegan_di.diffusion import iddpm_levels, vp_sigma, vp_time
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.networks.checks import check_choice
from stylegan_di.sampling.heun import sigma_steps
from stylegan_di.torch_utils.precision import moved

SOLVERS = ("euler", "heun")
SCALINGS = ("none", "vp")
EPSILON_S = 1e-3  # VP's smallest time
#: Default lowest and highest noise level of each discretization.
DISCRETIZATIONS: dict[str, tuple[float, float]] = {
    "edm": (0.002, 80.0),
    "vp": tuple(vp_sigma(torch.tensor([EPSILON_S, 1.0], dtype=torch.float64, device="cpu")).tolist()),
    "ve": (0.02, 100.0),
    "iddpm": (0.002, 81.0),
}  # fmt: skip


def _vp_slope(t: Tensor, beta_d: float, beta_min: float) -> Tensor:
    sigma = vp_sigma(t, beta_d, beta_min)
    return 0.5 * (beta_min + beta_d * t) * (sigma + 1 / sigma)


#: sigma(t), its inverse and its derivative, as functions of t or sigma and VP's betas.
_SCHEDULES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "linear": (lambda t, *_: t, lambda sigma, *_: sigma, lambda t, *_: torch.ones_like(t)),
    "vp": (vp_sigma, vp_time, _vp_slope),
    "ve": (lambda t, *_: t.sqrt(), lambda sigma, *_: sigma.square(), lambda t, *_: 0.5 / t.sqrt()),
}
SCHEDULES = tuple(_SCHEDULES)


@dataclass(frozen=True)
class Process:
    """Noise level sigma(t) by `schedule` (SCHEDULES) and scale s(t) by `scaling` (SCALINGS); beta_* are VP's.

    Its methods take and return float64 tensors of any shape, or float32 ones.
    """

    schedule: str
    scaling: str
    beta_d: float
    beta_min: float

    def sigma(self, t: Tensor) -> Tensor:
        return _SCHEDULES[self.schedule][0](t, self.beta_d, self.beta_min)

    def time(self, sigma: Tensor) -> Tensor:
        """Inverts `sigma`."""
        return _SCHEDULES[self.schedule][1](sigma, self.beta_d, self.beta_min)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """Returns d sigma / dt."""
        return _SCHEDULES[self.schedule][2](t, self.beta_d, self.beta_min)

    def scale(self, t: Tensor) -> Tensor:
        """Returns s(t)."""
        return (1 + self.sigma(t).square()).rsqrt() if self.scaling == "vp" else torch.ones_like(t)

    def log_scale_slope(self, t: Tensor) -> Tensor:
        """Returns d ln s / dt."""
        if self.scaling == "none":
            return torch.zeros_like(t)
        return -self.sigma(t) * self.sigma_slope(t) * self.scale(t).square()


def vp_betas(sigma_min: float, sigma_max: float, epsilon_s: float) -> tuple[float, float]:
    """Returns (beta_d, beta_min) for which VP's noise level is sigma_min at time epsilon_s and sigma_max at 1."""
    low, high = math.log(sigma_min**2 + 1), math.log(sigma_max**2 + 1)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    return beta_d, high - 0.5 * beta_d


def noise_levels(
    discretization: str,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: float = 7,
    epsilon_s: float = EPSILON_S,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> Tensor:
    """Returns the noise levels from sigma_max to sigma_min of one of DISCRETIZATIONS: [num_steps] float64 on the CPU.

    rho is EDM's, epsilon_s is VP's; iddpm takes those of its M levels within the range, evenly spaced by index.

    Raises:
        UserError: if the range contains none of iDDPM's levels.
    """
    check_choice("discretization", discretization, tuple(DISCRETIZATIONS))
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    match discretization:
        case "vp":
            return vp_sigma(1 + ramp * (epsilon_s - 1), *vp_betas(sigma_min, sigma_max, epsilon_s))
        case "ve":
            return (sigma_max**2 * (sigma_min**2 / sigma_max**2) ** ramp).sqrt()
        case "iddpm":
            levels = iddpm_levels(M, C_1, C_2, torch.float64)
            levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
            if not len(levels):
                found = f"none of iDDPM's {M} noise levels is from {sigma_min:g} to {sigma_max:g}"
                raise UserError(f"{found}; widen the range (--sigma-min, --sigma-max)")
            return levels[(ramp * (len(levels) - 1)).round().long()]
    return sigma_steps(num_steps, sigma_min, sigma_max, rho)


@torch.no_grad()
def ablation_sampler(
    denoiser: Denoiser,
    latents: Tensor,
    labels: Tensor | None = None,
    *,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = EPSILON_S,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = math.inf,
    S_noise: float = 1,
    noise_source: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Turns noise into images with a denoiser; its defaults are the same as `stylegan_di.sampling.heun.heun_sampler`.

    Args:
        solver, discretization, schedule, scaling: see SOLVERS, DISCRETIZATIONS, SCHEDULES, SCALINGS.
        sigma_min, sigma_max: None for the discretization's defaults; clipped to the denoiser's range.
        rho, epsilon_s, C_1, C_2, M: see `noise_levels`.
        alpha: position of the second evaluation as a share of the step: 1 for Heun, 1/2 for midpoint.
        denoiser, latents, labels, num_steps, S_churn, S_min, S_max, S_noise, noise_source: see `heun_sampler`.

    Returns:
        Images [B,C,H,W] float64 (float32 on a device without it), nominally in [-1,1].

    Raises:
        ValueError: if a name is unknown.
    """
    check_choice("solver", solver, SOLVERS)
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("scaling", scaling, SCALINGS)
    check_choice("discretization", discretization, tuple(DISCRETIZATIONS))
    if S_churn > 0 and noise_source is None:
        raise ValueError(f"S_churn={S_churn} adds noise: noise_source must be given")
    lowest, highest = DISCRETIZATIONS[discretization]
    low = max(lowest if sigma_min is None else sigma_min, denoiser.sigma_min)
    high = min(highest if sigma_max is None else sigma_max, denoiser.sigma_max)
    process = Process(schedule, scaling, *vp_betas(low, high, epsilon_s))
    sigmas = noise_levels(discretization, num_steps, low, high, rho=rho, epsilon_s=epsilon_s, C_1=C_1, C_2=C_2, M=M)
    times = process.time(denoiser.round_sigma(sigmas))
    times = moved(torch.cat([times, times.new_zeros(1)]), latents.device)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        """Returns dx/dt of the probability flow (eq. 4)."""
        sigma, scale, sigma_slope = process.sigma(t), process.scale(t), process.sigma_slope(t)
        denoised = denoiser(x / scale, sigma, labels).to(x.dtype)
        return (sigma_slope / sigma + process.log_scale_slope(t)) * x - sigma_slope * scale / sigma * denoised

    x = latents.to(times.dtype) * process.sigma(times[0]) * process.scale(times[0])
    for step, (t, t_next) in enumerate(pairwise(times), start=1):
        if noise_source is not None and S_churn > 0:
            sigma = process.sigma(t)
            gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= sigma <= S_max else 0.0
            t_hat = process.time(denoiser.round_sigma(sigma + gamma * sigma))
            added = (process.sigma(t_hat).square() - sigma.square()).clamp_min(0).sqrt()
            noise = noise_source(*x.shape[1:])
            x = process.scale(t_hat) / process.scale(t) * x + added * process.scale(t_hat) * S_noise * noise
            t = t_hat
        h = t_next - t
        d = slope(x, t)
        if solver == "heun" and step < num_steps:
            d_second = slope(x + alpha * h * d, t + alpha * h)
            d = (1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_second
        x = x + h * d
    return x
