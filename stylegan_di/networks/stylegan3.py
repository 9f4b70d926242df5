"""StyleGAN3's alias-free generator, configurations T (translation) and R (also rotation).

Karras et al. 2021 (arXiv 2106.12423). Names of classes, arguments, attributes and parameters are those of NVlabs' file
format (their training.networks_stylegan3); the layers are in `stylegan3_layers`. The discriminator is StyleGAN2's.

A network made `.double()` computes in float64 throughout. Layers with use_fp16 compute in float16 on CUDA, from float32
parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from stylegan_di.networks.checks import check_rows
from stylegan_di.networks.stylegan2 import check_resolution
from stylegan_di.networks.stylegan3_layers import (
    SOURCE,
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

    _file_source = SOURCE

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

        growth = np.minimum(np.arange(num_layers + 1) / (num_layers - num_critical), 1)
        last_cutoff = img_resolution / 2
        cutoffs = first_cutoff * (last_cutoff / first_cutoff) ** growth
        stopbands = first_stopband * (last_cutoff * last_stopband_rel / first_stopband) ** growth
        rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
        half_widths = np.maximum(stopbands, rates / 2) - cutoffs
        sizes = (rates + margin_size * 2).astype(int)
        sizes[-2:] = img_resolution
        channels = np.rint(np.minimum(channel_base / 2 / cutoffs, channel_max)).astype(int)
        channels[-1] = img_channels

        self.input = SynthesisInput(
            w_dim,
            channels=int(channels[0]),
            size=int(sizes[0]),
            sampling_rate=float(rates[0]),
            bandwidth=float(cutoffs[0]),
        )
        self.layer_names: list[str] = []
        for index in range(num_layers + 1):
            before = max(index - 1, 0)
            layer = SynthesisLayer(
                w_dim,
                is_torgb=index == num_layers,
                is_critically_sampled=index >= num_layers - num_critical,
                use_fp16=bool(rates[index] * 2**num_fp16_res > img_resolution),
                in_channels=int(channels[before]),
                out_channels=int(channels[index]),
                in_size=int(sizes[before]),
                out_size=int(sizes[index]),
                in_sampling_rate=int(rates[before]),
                out_sampling_rate=int(rates[index]),
                in_cutoff=float(cutoffs[before]),
                out_cutoff=float(cutoffs[index]),
                in_half_width=float(half_widths[before]),
                out_half_width=float(half_widths[index]),
                **layer_kwargs,
            )
            name = f"L{index}_{sizes[index]}_{channels[index]}"
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

    _file_source = SOURCE

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
