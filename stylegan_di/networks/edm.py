"""EDM's preconditioned networks: VP, VE, iDDPM and EDM around a U-Net (`stylegan_di.networks.edm_unets`).

Karras et al. 2022 (arXiv 2206.00364), table 1. Names of classes, arguments, attributes and parameters are those of
NVlabs' file format.

A network made `.double()` computes in float64 throughout; one with `use_fp16` runs its U-Net in float16 on CUDA from
float32 parameters.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from stylegan_di.diffusion import (
    VP_BETA_D,
    VP_BETA_MIN,
    Preconditioning,
    edm_preconditioning,
    iddpm_levels,
    iddpm_preconditioning,
    per_sample,
    ve_preconditioning,
    vp_preconditioning,
    vp_sigma,
)
from stylegan_di.networks.edm_unets import DhariwalUNet, SongUNet, check_choice
from stylegan_di.torch_utils.persistence import PersistentModule

MODELS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Precond(PersistentModule):
    """D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise) (eq. 7), F a U-Net; subclasses give both."""

    img_resolution: int
    img_channels: int
    label_dim: int
    use_fp16: bool
    sigma_min: float
    sigma_max: float

    @abstractmethod
    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        """F(x): [B,C,H,W]; x [B,C,H,W] scaled, c_noise [B] or [1], labels [B or 1,label_dim]."""

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Preconditioning:
        """The four coefficients at noise levels sigma, shaped as sigma."""

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise levels that the network knows: here any."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Denoise.

        Args:
            x: noisy images [B,C,H,W], nominally in [-1,1] plus noise.
            sigma: noise levels [B] or scalar, > 0.
            class_labels: [B,label_dim] one-hot; None for the null label (zeros); ignored by an unconditional network.
            force_fp32: no float16, although the network has use_fp16.
            model_kwargs: `augment_labels` [B,augment_dim], for networks trained with augmentation.

        Returns:
            Denoised images as x, in float32 (float64 if the parameters are).
        """
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        half = self.use_fp16 and not force_fp32 and x.is_cuda and dtype == torch.float32
        x = x.to(dtype)
        sigma = per_sample(torch.as_tensor(sigma, device=x.device).to(dtype), x)
        labels = None
        if self.label_dim:
            labels = x.new_zeros([1, self.label_dim]) if class_labels is None else class_labels.to(dtype)
            labels = labels.reshape(-1, self.label_dim)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        raw = self.raw((c_in * x).to(torch.float16 if half else dtype), c_noise.flatten(), labels, **model_kwargs)
        return c_skip * x + c_out * raw.to(dtype)


class UNetPrecond(Precond):
    """Around the U-Net `model_type`(**model_kwargs); of its out_channels the first img_channels are used."""

    model: SongUNet | DhariwalUNet

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        out_channels: int,
        model_type: str,
        model_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        check_choice("model_type", model_type, list(MODELS))
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.model = MODELS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=out_channels,
            label_dim=label_dim,
            **model_kwargs,
        )

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        return self.model(x, c_noise, labels, **kwargs)[:, : self.img_channels]


class VPPrecond(UNetPrecond):
    """Variance preserving (DDPM); M: what c_noise counts to, epsilon_t: the smallest time in training."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = VP_BETA_D,
        beta_min: float = VP_BETA_MIN,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, img_channels, model_type, model_kwargs)
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.M = M
        self.epsilon_t = epsilon_t
        times = torch.tensor([epsilon_t, 1.0], dtype=torch.float32, device="cpu")  # in float32, as NVlabs have it
        self.sigma_min, self.sigma_max = vp_sigma(times, beta_d, beta_min).tolist()

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return vp_preconditioning(sigma, self.beta_d, self.beta_min, self.M)


class VEPrecond(UNetPrecond):
    """Variance exploding."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, img_channels, model_type, model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return ve_preconditioning(sigma)


class iDDPMPrecond(UNetPrecond):
    """iDDPM: knows the M noise levels of `iddpm_levels` only; the U-Net's second half of channels is its variance."""

    u: Tensor  # [M+1] noise levels, falling to 0

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, img_channels * 2, model_type, model_kwargs)
        self.C_1 = C_1
        self.C_2 = C_2
        self.M = M
        levels = iddpm_levels(M, C_1, C_2)
        self.register_buffer("u", levels)
        self.sigma_min = float(levels[M - 1])
        self.sigma_max = float(levels[0])

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return iddpm_preconditioning(sigma, self._nearest(sigma), self.M)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma)
        return self.u[self._nearest(sigma)].to(sigma)

    def _nearest(self, sigma: Tensor) -> Tensor:
        """Indices of the nearest noise levels, shaped as sigma."""
        return (sigma.to(self.u)[..., None] - self.u).abs().argmin(dim=-1)


class EDMPrecond(UNetPrecond):
    """EDM's own: inputs and targets of unit variance for images of standard deviation sigma_data."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, img_channels, model_type, model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return edm_preconditioning(sigma, self.sigma_data)


#: By the names of the command line.
PRECONDITIONERS: dict[str, type[VPPrecond] | type[VEPrecond] | type[iDDPMPrecond] | type[EDMPrecond]] = {
    "edm": EDMPrecond,
    "vp": VPPrecond,
    "ve": VEPrecond,
    "iddpm": iDDPMPrecond,
}
