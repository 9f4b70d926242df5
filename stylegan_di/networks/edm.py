"""EDM's preconditioned networks: VP, VE, iDDPM and EDM around a U-Net (`stylegan_di.networks.edm_unets`).

Karras et al. 2022 (arXiv 2206.00364), table 1. Names of classes, arguments, attributes and parameters are those of
NVlabs' file format.

A network made `.double()` computes in float64 throughout. With `use_fp16` and float32 parameters, the U-Net runs in
float16 on CUDA.
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
    linear_levels,
    noise_prediction,
    per_sample,
    vp_sigma,
    vp_time,
)
from stylegan_di.networks.checks import check_choice
from stylegan_di.networks.edm_unets import DhariwalUNet, SongUNet
from stylegan_di.torch_utils.persistence import PersistentModule

MODELS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Precond(PersistentModule):
    """D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise) (eq. 7); subclasses define the U-Net F and the c's."""

    sigma_min: float
    sigma_max: float
    img_width: int | None = None  # of images that are not square, whose height is img_resolution
    latents: tuple[list[float], list[float]] | None = None  # see `interfaces.Denoiser`

    def __init__(self, img_resolution: int, img_channels: int, label_dim: int, use_fp16: bool) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16

    @abstractmethod
    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        """Returns F(x) [B,C,H,W] for the scaled x [B,C,H,W], c_noise [B] or [1] and labels [B or 1,label_dim]."""

    @abstractmethod
    def raw_features(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> list[Tensor]:
        """Returns the encoder's outputs of F for the arguments of `raw`; see `edm_unets.UNet.features`."""

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Preconditioning:
        """The four coefficients at noise levels sigma, each shaped like sigma."""

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Rounds to the nearest noise levels that the network knows; by default it knows all."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> Tensor:
        """Denoises images.

        Args:
            x: noisy images [B,C,H,W], nominally in [-1,1] plus noise.
            sigma: noise levels [B] or scalar, > 0.
            class_labels: [B,label_dim] one-hot; None for the null label (zeros); ignored by an unconditional network.
            force_fp32: computes in float32 even if the network has use_fp16.
            model_kwargs: `augment_labels` [B,augment_dim], for networks trained with augmentation; `recompute`, whether
                the backward pass computes the activations inside blocks again.

        Returns:
            Denoised images shaped like x, in float32 (float64 if the parameters are).
        """
        x, (c_skip, c_out, _, _), inputs = self._precondition(x, sigma, class_labels, force_fp32)
        return c_skip * x + c_out * self.raw(*inputs, **model_kwargs).to(x.dtype)

    def features(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, **model_kwargs: Any
    ) -> list[Tensor]:
        """Runs the U-Net's encoder alone, on the inputs that `forward` would give it for the same arguments.

        Returns the encoder's last output at each level, [B,C_i,H/2^i,W/2^i] from the highest resolution to the lowest
        (see `edm_unets.UNet.features`), in the dtype in which the U-Net computes.
        """
        return self.raw_features(*self._precondition(x, sigma, class_labels)[2], **model_kwargs)

    def _precondition(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None, force_fp32: bool = False
    ) -> tuple[Tensor, Preconditioning, tuple[Tensor, Tensor, Tensor | None]]:
        """Returns x in the result's dtype, the coefficients, and the U-Net's inputs: c_in * x, c_noise and labels."""
        if self.img_width is not None and x.shape[2:] != (self.img_resolution, self.img_width):
            own = f"{self.img_width}x{self.img_resolution}"
            raise ValueError(f"images of {x.shape[3]}x{x.shape[2]} for a network of {own}")
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        half = self.use_fp16 and not force_fp32 and x.is_cuda and dtype == torch.float32
        x = x.to(dtype)
        coefficients = self.coefficients(per_sample(torch.as_tensor(sigma, device=x.device).to(dtype), x))
        labels = None
        if self.label_dim:
            labels = x.new_zeros([1, self.label_dim]) if class_labels is None else class_labels.to(dtype)
            labels = labels.reshape(-1, self.label_dim)
        scaled = (coefficients.c_in * x).to(torch.float16 if half else dtype)
        return x, coefficients, (scaled, coefficients.c_noise.flatten(), labels)


class UNetPrecond(Precond):
    """Preconditions the U-Net `model_type`(**model_kwargs), of whose out_channels it uses the first img_channels.

    `img_width` among model_kwargs is the width of images that are not square; it must halve as often as the height.

    Raises:
        ValueError: if height or width cannot be halved so often.
    """

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
        super().__init__(img_resolution, img_channels, label_dim, use_fp16)
        check_choice("model_type", model_type, list(MODELS))
        img_width = model_kwargs.pop("img_width", None)
        self.model = MODELS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=out_channels,
            label_dim=label_dim,
            **model_kwargs,
        )
        if img_width not in (None, img_resolution):
            lowest = min(int(key.partition("x")[0]) for key in self.model.enc)
            if img_width % (img_resolution // lowest):
                raise ValueError(f"a width of {img_width}, which does not halve as a height of {img_resolution} does")
            self.img_width = img_width

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> Tensor:
        return self.model(x, c_noise, labels, **kwargs)[:, : self.img_channels]

    def raw_features(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, **kwargs: Any) -> list[Tensor]:
        return self.model.features(x, c_noise, labels, **kwargs)


class VPPrecond(UNetPrecond):
    """Variance preserving (DDPM): F estimates the noise.

    c_noise is M - 1 times the time, of which epsilon_t is the smallest in training.
    """

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
        times = torch.tensor([epsilon_t, 1.0], dtype=torch.float32, device="cpu")  # NVlabs use float32
        self.sigma_min, self.sigma_max = vp_sigma(times, beta_d, beta_min).tolist()

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return noise_prediction(sigma, (self.M - 1) * vp_time(sigma, self.beta_d, self.beta_min))


class VEPrecond(UNetPrecond):
    """Variance exploding: F estimates the negative noise from the unscaled noisy image."""

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
        one = torch.ones_like(sigma)
        return Preconditioning(c_skip=one, c_out=sigma, c_in=one, c_noise=(sigma / 2).log())


class iDDPMPrecond(UNetPrecond):
    """iDDPM, with only the M noise levels of `iddpm_levels`; the second half of the U-Net's outputs is a variance."""

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
        self.set_levels(iddpm_levels(M, C_1, C_2))

    def set_levels(self, levels: Tensor) -> None:
        """Sets the noise levels, falling to 0 [M+1].

        Raises:
            ValueError: if they are not finite.
        """
        if not bool(levels.isfinite().all()):
            raise ValueError(f"noise levels that are not finite, of M={self.M}, C_1={self.C_1:g}, C_2={self.C_2:g}")
        self.register_buffer("u", levels)
        self.sigma_min = float(levels[self.M - 1])
        self.sigma_max = float(levels[0])

    def coefficients(self, sigma: Tensor) -> Preconditioning:
        return noise_prediction(sigma, (self.M - 1 - self._nearest(sigma)).to(sigma.dtype))

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma)
        return self.u[self._nearest(sigma)].to(sigma)

    def _nearest(self, sigma: Tensor) -> Tensor:
        """Returns the indices of the nearest noise levels, shaped like sigma."""
        return (sigma.to(self.u)[..., None] - self.u).abs().argmin(dim=-1)


class DDPMPrecond(iDDPMPrecond):
    """iDDPM at the noise levels of DDPM's linear betas, as ADM's networks above 64 pixels; not of NVlabs' format."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, M=M, model_type=model_type, **model_kwargs)
        self.set_levels(linear_levels(M))


class EDMPrecond(UNetPrecond):
    """EDM's own, which gives inputs and targets unit variance for images of standard deviation sigma_data."""

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


#: The preconditioners by their names on the command line.
PRECONDITIONERS: dict[str, type[VPPrecond] | type[VEPrecond] | type[iDDPMPrecond] | type[EDMPrecond]] = {
    "edm": EDMPrecond,
    "vp": VPPrecond,
    "ve": VEPrecond,
    "iddpm": iDDPMPrecond,
}
