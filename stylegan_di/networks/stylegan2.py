"""The networks of StyleGAN2 with adaptive discriminator augmentation.

Karras et al. 2020 (arXiv 1912.04958 and 2006.06676). Names of classes, arguments, attributes and parameters are
those of NVlabs' file format; the layers are in `stylegan2_layers`.

Symbols: z is the latent, c the labels, w the mapped latent, ws one w per layer, w_avg their mean, psi the truncation.
A network made `.double()` computes in float64 throughout. On a GPU, blocks with use_fp16 compute in float16 from
float32 parameters, and RGB images in the parameters' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.networks.checks import check_choice, check_rows
from stylegan_di.networks.stylegan2_layers import (
    RESAMPLE_FILTER,
    Conv2dLayer,
    FullyConnectedLayer,
    MappingNetwork,
    MinibatchStdLayer,
    NoiseSource,
    SynthesisLayer,
    ToRGBLayer,
)
from stylegan_di.torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d
from stylegan_di.torch_utils.persistence import PersistentModule

LAYOUT = torch.channels_last  # the faster layout for activations in float32 and float64
ARCHITECTURES = ("orig", "skip", "resnet")
HALF_ON = ("cuda",)  # where blocks with use_fp16 compute in float16; a CPU takes forty times as long, or more


def block_precision(weight: Tensor, use_fp16: bool, channels_last: bool) -> tuple[torch.dtype, torch.memory_format]:
    """Returns the dtype and layout of a block's activations; float16 is used on a GPU, with float32 parameters."""
    if use_fp16 and weight.dtype == torch.float32 and weight.device.type in HALF_ON:
        return torch.float16, torch.channels_last if channels_last else torch.contiguous_format
    return weight.dtype, LAYOUT


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    return min(channel_base // resolution, channel_max)


def lowest_fp16_resolution(img_resolution: int, num_fp16_res: int) -> int:
    """The lowest of the num_fp16_res highest resolutions, which compute in float16; never below 8."""
    return max(2 * img_resolution >> num_fp16_res, 8)


def check_resolution(img_resolution: int) -> None:
    """Raises ValueError unless the resolution is a power of two and 4 or more."""
    if img_resolution < 4 or img_resolution & (img_resolution - 1):
        raise ValueError(f"{img_resolution=}; accepted: powers of two from 4")


class SynthesisBlock(PersistentModule):
    """The generator's layers at one resolution.

    Args:
        in_channels: 0 for the first block, which starts from the constant `const`.
        resolution: resolution of the output.
        is_last: whether this is the block of the highest resolution.
        architecture: 'orig' (RGB from the last block), 'skip' (the sum of RGB from every block) or 'resnet'.
        resample_filter: taps of the upsampling filter.
        conv_clamp: limit on the absolute value of a layer's output, None for no limit.
        use_fp16, fp16_channels_last: whether to compute in float16, and then with channels_last activations.
        layer_kwargs: arguments for the SynthesisLayers.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        **layer_kwargs: Any,
    ) -> None:
        check_choice("architecture", architecture, ARCHITECTURES)
        super().__init__()
        self.in_channels = in_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = 1 if is_last or architecture == "skip" else 0
        layer_kwargs = dict(
            layer_kwargs,
            w_dim=w_dim,
            resolution=resolution,
            conv_clamp=conv_clamp,
            channels_last=self.channels_last,
        )
        if in_channels == 0:
            self.const = Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, up=2, resample_filter=resample_filter, **layer_kwargs
            )
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer_kwargs)
        if self.num_torgb:
            self.torgb = ToRGBLayer(
                out_channels, img_channels, w_dim=w_dim, conv_clamp=conv_clamp, channels_last=self.channels_last
            )
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels,
                out_channels,
                kernel_size=1,
                bias=False,
                up=2,
                resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        noise_mode: str = "random",
        noise_source: NoiseSource | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [N,in_channels,res/2,res/2], img [N,img_channels,res/2,res/2] or None, ws [N,num_conv+num_torgb,w_dim].

        Returns x and img at this block's resolution. For the other arguments see `SynthesisNetwork.forward`.
        """
        dtype, layout = block_precision(self.conv1.weight, self.use_fp16 and not force_fp32, self.channels_last)
        layer: dict[str, Any] = {"noise_mode": noise_mode, "noise_source": noise_source}
        if self.in_channels == 0:
            x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=layout)
            x = self.conv1(x, ws[:, 0], **layer)
        else:
            assert x is not None
            x = x.to(dtype=dtype, memory_format=layout)
            if self.architecture == "resnet":
                y = self.skip(x, gain=math.sqrt(0.5))
                x = self.conv0(x, ws[:, 0], **layer)
                x = y + self.conv1(x, ws[:, 1], gain=math.sqrt(0.5), **layer)
            else:
                x = self.conv0(x, ws[:, 0], **layer)
                x = self.conv1(x, ws[:, 1], **layer)
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv]).to(self.conv1.weight.dtype)
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisNetwork(PersistentModule):
    """Turns ws into images.

    Args:
        w_dim: length of a w.
        img_resolution, img_channels: shape of the images; the resolution is a power of two.
        channel_base, channel_max: a resolution has min(channel_base / resolution, channel_max) feature maps.
        num_fp16_res: how many of the highest resolutions compute in float16.
        block_kwargs: arguments for the SynthesisBlocks.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        **block_kwargs: Any,
    ) -> None:
        check_resolution(img_resolution)
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = img_resolution.bit_length() - 1
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(2, self.img_resolution_log2 + 1)]
        self.num_ws = 0
        fp16_resolution = lowest_fp16_resolution(img_resolution, num_fp16_res)
        in_channels = 0
        for res in self.block_resolutions:
            out_channels = channels_at(res, channel_base, channel_max)
            is_last = res == img_resolution
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=is_last,
                use_fp16=res >= fp16_resolution,
                **block_kwargs,
            )
            self.num_ws += block.num_conv + (block.num_torgb if is_last else 0)
            setattr(self, f"b{res}", block)
            in_channels = out_channels

    def forward(
        self,
        ws: Tensor,
        noise_mode: str = "random",
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        noise_source: NoiseSource | None = None,
    ) -> Tensor:
        """Images [N,img_channels,R,R], nominally in [-1,1], from ws [N,num_ws,w_dim].

        Args:
            noise_mode: per-pixel noise: 'random', 'const' (the stored noise) or 'none'.
            force_fp32: makes float16 blocks compute in float32.
            fused_modconv: has no effect. NVlabs' signature has it to choose between two implementations of one sum;
                here there is only one, see `modulated_conv2d`.
            noise_source: source of random noise, called with (1, res, res) for [N,1,res,res] standard normal numbers;
                None for torch's global generator.
        """
        ws = check_rows("ws", ws, self.num_ws, self.w_dim).to(next(self.parameters()).dtype)
        x = img = None
        index = 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            block_ws = ws[:, index : index + block.num_conv + block.num_torgb]
            x, img = block(x, img, block_ws, force_fp32, fused_modconv, noise_mode, noise_source)
            index += block.num_conv
        assert img is not None
        return img


class Generator(PersistentModule):
    """images = synthesis(mapping(z, c)).

    Args:
        z_dim, c_dim, w_dim: lengths of latents, labels (0: unconditional) and mapped latents.
        mapping_kwargs, synthesis_kwargs: arguments for the MappingNetwork and the SynthesisNetwork.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] | None = None,
        synthesis_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **(synthesis_kwargs or {}))
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        """Generates images from z [N,z_dim], standard normal, and c [N,c_dim], one-hot, ignored if c_dim is 0.

        For truncation see `MappingNetwork.forward`, for synthesis_kwargs and the result `SynthesisNetwork.forward`.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


class DiscriminatorBlock(PersistentModule):
    """The discriminator's layers at one resolution, which they halve.

    Args:
        in_channels: 0 for the first block.
        tmp_channels, out_channels: channels within and after the block.
        resolution: resolution of the input.
        first_layer_idx: number of layers in the preceding blocks; the first freeze_layers layers are not trainable.
        architecture: 'orig', 'skip' (every block also sees the image at its resolution) or 'resnet'.
        For the other arguments see `SynthesisBlock`.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        first_layer_idx: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter: Sequence[float] = RESAMPLE_FILTER,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ) -> None:
        check_choice("architecture", architecture, ARCHITECTURES)
        super().__init__()
        self.in_channels = in_channels
        self.resolution = resolution
        self.img_channels = img_channels
        self.first_layer_idx = first_layer_idx
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.num_layers = 0

        def conv(cin: int, cout: int, kernel_size: int, **kwargs: Any) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            return Conv2dLayer(cin, cout, kernel_size, channels_last=self.channels_last, trainable=trainable, **kwargs)

        act: dict[str, Any] = {"activation": activation, "conv_clamp": conv_clamp}
        down: dict[str, Any] = {"down": 2, "resample_filter": resample_filter}
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = conv(img_channels, tmp_channels, 1, **act)
        self.conv0 = conv(tmp_channels, tmp_channels, 3, **act)
        self.conv1 = conv(tmp_channels, out_channels, 3, **act, **down)
        if architecture == "resnet":
            self.skip = conv(tmp_channels, out_channels, 1, bias=False, **down)

    def forward(self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False) -> tuple[Tensor, Tensor | None]:
        """x [N,in_channels,res,res] or None; img [N,img_channels,res,res]; returns both at half the resolution."""
        dtype, layout = block_precision(self.conv0.weight, self.use_fp16 and not force_fp32, self.channels_last)
        if x is not None:
            x = x.to(dtype=dtype, memory_format=layout)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            img = img.to(dtype=dtype, memory_format=layout)
            y = self.fromrgb(img)
            x = y if x is None else x + y
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        assert x is not None
        if self.architecture == "resnet":
            y = self.skip(x, gain=math.sqrt(0.5))
            return y + self.conv1(self.conv0(x), gain=math.sqrt(0.5)), img
        return self.conv1(self.conv0(x)), img


class DiscriminatorEpilogue(PersistentModule):
    """The last block, which turns 4x4 feature maps into logits, always in the parameters' precision.

    Args:
        cmap_dim: length of the mapped labels, 0 for none.
        mbstd_group_size, mbstd_num_channels: arguments for the MinibatchStdLayer; with 0 channels there is none.
        For the other arguments see `DiscriminatorBlock`.
    """

    mbstd: MinibatchStdLayer | None

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ) -> None:
        check_choice("architecture", architecture, ARCHITECTURES)
        super().__init__()
        self.in_channels = in_channels
        self.cmap_dim = cmap_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None, force_fp32: bool = False) -> Tensor:
        """x [N,in_channels,res,res], img [N,img_channels,res,res] if 'skip', cmap [N,cmap_dim] -> logits [N,1]."""
        del force_fp32
        dtype = self.fc.weight.dtype
        x = x.to(dtype=dtype, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(dtype=dtype, memory_format=torch.contiguous_format))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            assert cmap is not None
            x = (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)
        return x


class Discriminator(PersistentModule):
    """Turns images into logits.

    Args:
        c_dim: length of the labels, 0: unconditional.
        img_resolution, img_channels: shape of the images; the resolution is a power of two.
        architecture: see `DiscriminatorBlock`.
        channel_base, channel_max, num_fp16_res: see `SynthesisNetwork`.
        conv_clamp: limit on the absolute value of a layer's output, None for no limit.
        cmap_dim: length of the mapped labels; default: the number of feature maps at 4x4.
        block_kwargs, mapping_kwargs, epilogue_kwargs: for DiscriminatorBlock, MappingNetwork, DiscriminatorEpilogue.
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: dict[str, Any] | None = None,
        mapping_kwargs: dict[str, Any] | None = None,
        epilogue_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_resolution(img_resolution)
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = img_resolution.bit_length() - 1
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(self.img_resolution_log2, 2, -1)]
        widths = {res: channels_at(res, channel_base, channel_max) for res in [*self.block_resolutions, 4]}
        cmap_dim = widths[4] if cmap_dim is None else cmap_dim
        cmap_dim = 0 if c_dim == 0 else cmap_dim
        fp16_resolution = lowest_fp16_resolution(img_resolution, num_fp16_res)
        common: dict[str, Any] = {"img_channels": img_channels, "architecture": architecture, "conv_clamp": conv_clamp}
        layer_count = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(
                widths[res] if res < img_resolution else 0,
                widths[res],
                widths[res // 2],
                resolution=res,
                first_layer_idx=layer_count,
                use_fp16=res >= fp16_resolution,
                **common,
                **(block_kwargs or {}),
            )
            layer_count += block.num_layers
            setattr(self, f"b{res}", block)
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **(mapping_kwargs or {})
            )
        self.b4 = DiscriminatorEpilogue(
            widths[4], cmap_dim=cmap_dim, resolution=4, **common, **(epilogue_kwargs or {})
        )

    def forward(self, img: Tensor, c: Tensor | None, force_fp32: bool = False) -> Tensor:
        """Images [N,img_channels,R,R] in [-1,1], labels c [N,c_dim] (ignored if c_dim is 0) -> logits [N,1].

        force_fp32 makes float16 blocks compute in float32.
        """
        x: Tensor | None = None
        y: Tensor | None = img
        for res in self.block_resolutions:
            x, y = getattr(self, f"b{res}")(x, y, force_fp32=force_fp32)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, y, cmap)
