"""StyleGAN3's alias-free generator, configurations T (translation) and R (also rotation).

Karras et al. 2021 (arXiv 2106.12423). Names of classes, arguments, attributes and parameters are those of NVlabs' file
format (their training.networks_stylegan3); the layers are in `stylegan3_layers`. The discriminator is StyleGAN2's.

A network made `.double()` computes in float64 throughout. Layers with use_fp16 compute in float16 on CUDA, from float32
parameters.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stylegan_di.networks.checks import check_rows
from stylegan_di.networks.stylegan2 import check_resolution
from stylegan_di.networks.stylegan3_layers import (
    FullyConnectedLayer,
    MappingNetwork,
    SynthesisInput,
    SynthesisLayer,
)
from stylegan_di.torch_utils.persistence import PersistentModule

__all__ = [
    "FullyConnectedLayer",
    "Generator",
    "MappingNetwork",
    "SynthesisInput",
    "SynthesisLayer",
    "SynthesisNetwork",
]


@dataclass(frozen=True)
class _Level:
    """Feature maps between two layers; `rate` is their sampling rate, `half_width` that of the band's transition."""

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float

    def arguments(self, side: str) -> dict[str, Any]:
        """Returns the arguments of a layer that has them on a side, 'in' or 'out'."""
        names = ("channels", "size", "sampling_rate", "cutoff", "half_width")
        return {f"{side}_{name}": value for name, value in zip(names, astuple(self), strict=True)}


def _levels(
    num_layers: int,
    num_critical: int,
    *,
    cutoffs: tuple[float, float],
    stopbands: tuple[float, float],
    channels: tuple[float, int, int],
    img_resolution: int,
    margin_size: int,
) -> list[_Level]:
    """Returns what each layer writes, ToRGB last (section 3.2 of the paper).

    Args:
        cutoffs, stopbands: ends of pass bands and beginnings of stop bands, the first and the last.
        channels: the numerator of their number, its limit, and those of the images.
    """
    growth = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
    cutoff, stopband = (first * (last / first) ** growth for first, last in (cutoffs, stopbands))
    rate = np.exp2(np.ceil(np.log2(np.minimum(stopband * 2, img_resolution))))
    half_width = np.maximum(stopband, rate / 2) - cutoff
    size = rate + margin_size * 2
    size[-2:] = img_resolution
    number = np.rint(np.minimum(channels[0] / cutoff, channels[1]))
    number[-1] = channels[2]
    rows = zip(number, size, rate, cutoff, half_width, strict=True)
    return [_Level(int(n), int(s), int(r), float(c), float(h)) for n, s, r, c, h in rows]


class SynthesisNetwork(PersistentModule):
    """Turns ws into images. Bands and sampling rates grow from layer to layer by a geometric progression.

    Args:
        w_dim: length of a w.
        img_resolution, img_channels: shape of the images; the resolution is a power of two.
        channel_base, channel_max: a layer with cutoff f has min(channel_base / 2 / f, channel_max) feature maps.
        num_layers: number of layers before ToRGB.
        num_critical: number of critically sampled layers before ToRGB, >= 1.
        first_cutoff, first_stopband: ends of the first layer's pass band and beginning of its stop band.
        last_stopband_rel: beginning of the last layer's stop band, relative to its cutoff.
        margin_size: pixels around the picture in all but the last layers.
        output_scale: factor on the images.
        num_fp16_res: rates above img_resolution / 2^num_fp16_res compute in float16 on CUDA.
        layer_kwargs: arguments for the SynthesisLayers.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        num_fp16_res: int = 4,
        **layer_kwargs: Any,
    ) -> None:
        check_resolution(img_resolution)
        if not 1 <= num_critical < num_layers:
            raise ValueError(f"{num_layers=}, {num_critical=}; accepted: 1 <= num_critical < num_layers")
        super().__init__()
        self.w_dim = w_dim
        self.num_ws = num_layers + 2
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_layers = num_layers
        self.num_critical = num_critical
        self.margin_size = margin_size
        self.output_scale = output_scale
        self.num_fp16_res = num_fp16_res

        last = img_resolution / 2
        levels = _levels(
            num_layers,
            num_critical,
            cutoffs=(first_cutoff, last),
            stopbands=(first_stopband, last * last_stopband_rel),
            channels=(channel_base / 2, channel_max, img_channels),
            img_resolution=img_resolution,
            margin_size=margin_size,
        )
        if min(level.channels for level in levels) < 1:
            raise ValueError(f"{channel_base=}: too few for layers of cutoffs up to {last:g}")
        first = levels[0]
        self.input = SynthesisInput(
            w_dim, channels=first.channels, size=first.size, sampling_rate=float(first.rate), bandwidth=first.cutoff
        )
        self.layer_names: list[str] = []
        for index, (before, after) in enumerate(zip([first, *levels], levels, strict=False)):
            layer = SynthesisLayer(
                w_dim,
                is_torgb=index == num_layers,
                is_critically_sampled=index >= num_layers - num_critical,
                use_fp16=after.rate * 2**num_fp16_res > img_resolution,
                **before.arguments("in"),
                **after.arguments("out"),
                **layer_kwargs,
            )
            name = f"L{index}_{after.size}_{after.channels}"
            setattr(self, name, layer)
            self.layer_names.append(name)

    def forward(
        self, ws: Tensor, noise_mode: str = "random", force_fp32: bool = False, update_emas: bool = False
    ) -> Tensor:
        """Images [N,img_channels,R,R], nominally in [-1,1], from ws [N,num_ws,w_dim].

        Args:
            noise_mode: 'random', 'const' or 'none', as in NVlabs' signature; there is no noise, so all are the same.
            force_fp32: makes layers with use_fp16 compute in float32.
            update_emas: whether layers in train mode move their running magnitudes towards this batch's.
        """
        dtype = self.input.weight.dtype
        ws = check_rows("ws", ws, self.num_ws, self.w_dim).to(dtype)
        x = self.input(ws[:, 0])
        for index, name in enumerate(self.layer_names):
            x = getattr(self, name)(x, ws[:, index + 1], noise_mode, force_fp32, update_emas)
        return x.to(dtype) * self.output_scale


class Generator(PersistentModule):
    """images = synthesis(mapping(z, c)).

    Args:
        z_dim, c_dim, w_dim: lengths of latents, labels (0: unconditional) and mapped latents.
        img_resolution, img_channels: shape of the images.
        mapping_kwargs: arguments for the MappingNetwork.
        synthesis_kwargs: arguments for the SynthesisNetwork and its layers.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] | None = None,
        **synthesis_kwargs: Any,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        update_emas: bool = False,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        """Generates images from z [N,z_dim], standard normal, and c [N,c_dim], one-hot, ignored if c_dim is 0.

        update_emas moves w_avg and the layers' magnitudes towards this batch's, in train mode. For truncation see
        `MappingNetwork.forward`, for synthesis_kwargs and the result `SynthesisNetwork.forward`.
        """
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, update_emas=update_emas, **synthesis_kwargs)
