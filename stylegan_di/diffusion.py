"""Diffusion with variance-exploding noise: noising, scores, noise laws and preconditioning, as pure functions.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, arXiv 2206.00364;
its table 1 also expresses VP and VE (Song et al. 2021, arXiv 2011.13456) and iDDPM (Nichol & Dhariwal 2021,
arXiv 2102.09672) in the same terms.

A clean image x is noised to x + sigma * n, n ~ N(0, I). A denoiser D(x; sigma) estimates the clean image, and the
score of the noised distribution is (D(x; sigma) - x) / sigma^2 (eq. 3). Images have a standard deviation of about
sigma_data; sigma is a standard deviation in the same units, never a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stylegan_di.specs import POSITIVE, Range, number

VP_BETA_D, VP_BETA_MIN = 19.9, 0.1  # the values of VP's published networks

#: What a network of discrete time estimates: the noise, v (Salimans & Ho 2022, arXiv 2202.00512), or the clean image.
Prediction = Literal["epsilon", "v_prediction", "sample"]


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshapes sigma ([B], [1] or scalar) to broadcast over the samples of x: [-1,1,1,1] for x [B,C,H,W]."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def vp_sigma(t: Tensor, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> Tensor:
    """Returns VP's noise level at times t in [0,1]: sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
    return ((0.5 * beta_d * t.square() + beta_min * t).exp() - 1).sqrt()


def vp_time(sigma: Tensor, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> Tensor:
    """Inverts `vp_sigma`."""
    return ((beta_min**2 + 2 * beta_d * (1 + sigma.square()).log()).sqrt() - beta_min) / beta_d


def iddpm_levels(M: int, C_1: float, C_2: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns iDDPM's noise levels u_0 > u_1 > ... > u_M = 0, [M+1] on the CPU, computed in float32 or float64.

    u_{j-1} = sqrt((u_j^2 + 1) / max(a_{j-1} / a_j, C_1) - 1), a_j = sin^2(pi/2 j / M / (C_2 + 1)).
    """
    steps = torch.arange(M + 1, dtype=dtype, device="cpu")
    a = (steps * (0.5 * math.pi) / M / (C_2 + 1)).sin().square().numpy()
    ratios = np.maximum(a[:-1] / a[1:], a.dtype.type(C_1))
    levels, one = np.zeros_like(a), a.dtype.type(1)
    for j in range(M, 0, -1):
        levels[j - 1] = np.sqrt((levels[j] * levels[j] + one) / ratios[j - 1] - one)
    return torch.from_numpy(levels)


def add_noise(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Returns x + sigma * noise; x and noise [B,C,H,W], sigma [B] or scalar."""
    return x + per_sample(sigma, x) * noise


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Returns the weight (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 = 1 / c_out^2 (table 1), shaped as sigma."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()


class NoiseLaw(ABC):
    """The distribution of the noise levels in training, and the weight of a denoising loss at each (table 1)."""

    normal: ClassVar[bool] = False  # whether `sigma` takes standard normal numbers; else uniform ones in [0,1)

    @abstractmethod
    def sigma(self, draw: Tensor) -> Tensor:
        """Maps independent random numbers of any shape to noise levels."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Returns the weight of a denoising loss, shaped as sigma: EDM's unless a law overrides it."""
        return edm_weight(sigma)


def _check_bounds(sigma_min: float, sigma_max: float) -> None:
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min:g} is not below sigma_max={sigma_max:g}")


@dataclass(frozen=True)
class LogNormalLaw(NoiseLaw):
    """EDM's law: ln sigma ~ N(P_mean, P_std^2) (table 1)."""

    P_mean: float = number(-1.2, Range(-20, 20))
    P_std: float = number(1.2, Range(0, 10, open_low=True))
    normal = True

    def sigma(self, draw: Tensor) -> Tensor:
        return (draw * self.P_std + self.P_mean).exp()


@dataclass(frozen=True)
class KarrasLaw(NoiseLaw):
    """Uniform on the sampler's grid: sigma^(1/rho) is uniform between the bounds (eq. 5).

    `t_max` cuts off the upper end of the grid: SiD draws from its lowest 80 % (t_max = 0.8).
    """

    rho: float = number(7.0, POSITIVE)
    sigma_min: float = number(0.002, POSITIVE)
    sigma_max: float = number(80.0, POSITIVE)
    t_max: float = number(1.0, Range(0, 1, open_low=True))

    def __post_init__(self) -> None:
        _check_bounds(self.sigma_min, self.sigma_max)

    def sigma(self, draw: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + draw * self.t_max * (high - low)) ** self.rho


@dataclass(frozen=True)
class LogUniformLaw(NoiseLaw):
    """ln sigma is uniform between the bounds."""

    sigma_min: float = number(0.02, POSITIVE)
    sigma_max: float = number(100.0, POSITIVE)

    def __post_init__(self) -> None:
        _check_bounds(self.sigma_min, self.sigma_max)

    def sigma(self, draw: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** draw


@dataclass(frozen=True)
class VELaw(LogUniformLaw):
    """VE's law: `LogUniformLaw` with VE's weight."""

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.square()


@dataclass(frozen=True)
class VPLaw(NoiseLaw):
    """VP's law: sigma(t) for t uniform between epsilon_t and 1."""

    epsilon_t: float = number(1e-5, Range(0, 1, open_low=True, open_high=True))

    def sigma(self, draw: Tensor) -> Tensor:
        return vp_sigma(1 + draw * (self.epsilon_t - 1))

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.square()


#: The laws by their names on the command line.
NOISE_LAWS: dict[str, type[NoiseLaw]] = {
    "lognormal": LogNormalLaw,
    "karras": KarrasLaw,
    "loguniform": LogUniformLaw,
    "vp": VPLaw,
    "ve": VELaw,
}


class Preconditioning(NamedTuple):
    """The coefficients of D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise) (eq. 7), each shaped as sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Returns EDM's coefficients: input and target of F have unit variance and c_out is minimal (app. B.6)."""
    total = sigma.square() + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=total.rsqrt(),
        c_noise=sigma.log() / 4,
    )


def discrete_preconditioning(sigma: Tensor, time: Tensor, prediction: Prediction) -> Preconditioning:
    """Returns the coefficients of a network that was trained on DDPM's discrete times (arXiv 2006.11239).

    Such a network F sees x_t = a x + b n with a^2 + b^2 = 1, which is x_t = a (x + sigma n) with sigma = b / a, so that
    a = 1 / sqrt(1 + sigma^2) and b = sigma / sqrt(1 + sigma^2). From F = F(a x_sigma; time) follows the clean image:

        epsilon       F = n:           D = x_sigma - sigma F
        v_prediction  F = a n - b x:   D = a x_t - b F = x_sigma / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) F
        sample        F = x:           D = F

    time: of the noise level, shaped as sigma, as `discrete_time` finds it.
    """
    if prediction == "epsilon":
        return noise_prediction(sigma, time)
    a = (sigma.square() + 1).rsqrt()
    if prediction == "sample":
        return Preconditioning(torch.zeros_like(sigma), torch.ones_like(sigma), a, time)
    return Preconditioning(a.square(), -sigma * a, a, time)


def flow_preconditioning(sigma: Tensor, M: float) -> Preconditioning:
    """Returns the coefficients of a network of flow matching on straight paths (Lipman et al. 2023, arXiv 2210.02747).

    Such a network F sees x_t = (1 - t) x + t n = (1 - t) (x + sigma n) with sigma = t / (1 - t), is told M t, and
    estimates the velocity n - x. With t = sigma / (1 + sigma), D = x_t - t F = x_sigma / (1 + sigma) - t F.
    """
    rest = 1 / (1 + sigma)
    return Preconditioning(c_skip=rest, c_out=-sigma * rest, c_in=rest, c_noise=M * sigma * rest)


def discrete_levels(alphas_cumprod: Tensor) -> Tensor:
    """Returns the noise levels sqrt((1 - a) / a) of DDPM's times 0, 1, ...; a is the running product of its alphas [T].

    Levels without a finite sigma (a = 0, "zero terminal SNR") are left out.
    """
    a = alphas_cumprod[alphas_cumprod > 0].double()
    return ((1 - a) / a).sqrt()


def linear_levels(M: int, beta_first: float = 1e-4, beta_last: float = 0.02) -> Tensor:
    """Returns the noise levels u_0 > ... > u_M = 0 of DDPM's linear betas, float32 [M+1], ordered as `iddpm_levels`."""
    betas = torch.linspace(beta_first, beta_last, M, dtype=torch.float64, device="cpu")
    levels = discrete_levels((1 - betas).cumprod(dim=0))
    return torch.cat([levels.flip(0), levels.new_zeros(1)]).float()


def discrete_time(sigma: Tensor, levels: Tensor) -> Tensor:
    """Returns the times of noise levels sigma (any shape) among the rising `levels` [T] of times 0, 1, ..., T - 1.

    Between two levels the time is interpolated linearly in ln sigma; beyond the ends it is the end's. Float32.
    """
    known, wanted = levels.log(), sigma.to(levels.dtype).log()
    above = torch.searchsorted(known, wanted.contiguous()).clamp(1, len(known) - 1)
    low, high = known[above - 1], known[above]
    return (above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)).float()


def noise_prediction(sigma: Tensor, c_noise: Tensor) -> Preconditioning:
    """Returns the coefficients of a network that estimates the noise of variance-preserving images (table 1, DDPM)."""
    return Preconditioning(torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), c_noise)
