"""StyleGAN2's generator and discriminator (Karras et al. 2020, arXiv 1912.04958), as stylegan2-ada-pytorch files hold them.

Names of classes, arguments, attributes and state-dict entries are those of the file format. Weights are unit normal
and scaled at run time (equalised learning rates, arXiv 1710.10196, section 4.1). Symbols: z latent, c label, w/ws
intermediate latents (one per layer), psi truncation. Everything follows the parameters' type, so `.double()` computes
in float64; blocks marked `use_fp16` compute in float16 unless `force_fp32`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2, sqrt
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.modulated_conv2d import modulated_conv2d
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upsample2d
from torch_utils.persistence import PersistentModule

NoiseSource = Callable[[int, int, int], Tensor]  # (1, height, width) -> standard normal [N,1,height,width]


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x divided by its root mean square over dim."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


class FullyConnectedLayer(PersistentModule):
    """act(x W^T + b), x [N,in_features] -> [N,out_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight * self.weight_gain).to(x.dtype).t()
        b = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        return bias_act(y, b, act=self.activation)


class Conv2dLayer(PersistentModule):
    """Convolution with optional resampling, bias and activation, [N,in,H,W] -> [N,out,H*up/down,W*up/down]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: list[int] = [1, 3, 3, 1],  # noqa: B006 - init kwargs are part of the file format
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = up
        self.down = down
        self.conv_clamp = conv_clamp
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / sqrt(in_channels * kernel_size**2)
        self.act_gain = ACTIVATIONS[activation].gain
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size]).to(memory_format=layout)
        zeros = torch.zeros([out_channels]) if bias else None
        if trainable:
            self.weight = torch.nn.Parameter(weight)
            self.bias = torch.nn.Parameter(zeros) if zeros is not None else None
        else:
            self.register_buffer("weight", weight)
            if zeros is not None:
                self.register_buffer("bias", zeros)
            else:
                self.bias = None

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        w = (self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample(
            x, w, self.resample_filter, up=self.up, down=self.down, padding=self.padding, flip_weight=self.up == 1
        )
        b = None if self.bias is None else self.bias.to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, b, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class MappingNetwork(PersistentModule):
    """z [N,z_dim] and c [N,c_dim] -> ws [N,num_ws,w_dim] ([N,w_dim] if num_ws is None)."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        embed = 0 if c_dim == 0 else w_dim if embed_features is None else embed_features
        hidden = w_dim if layer_features is None else layer_features
        widths = [z_dim + embed] + [hidden] * (num_layers - 1) + [w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed)
        for index in range(num_layers):
            layer = FullyConnectedLayer(
                widths[index], widths[index + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        x = self._input(z, c)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if self.w_avg_beta is not None and self.training and not skip_w_avg_update and self.num_ws is not None:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is not None:
            x = x.unsqueeze(1).repeat([1, self.num_ws, 1])
        if truncation_psi != 1:
            if self.num_ws is None or truncation_cutoff is None:
                x = self.w_avg.lerp(x, truncation_psi)
            else:
                truncated = self.w_avg.lerp(x[:, :truncation_cutoff], truncation_psi)
                x = torch.cat([truncated, x[:, truncation_cutoff:]], dim=1)
        return x

    def _input(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        dtype = self.fc0.weight.dtype if self.num_layers else self.embed.weight.dtype
        parts = []
        if self.z_dim > 0:
            if z is None or z.shape[1:] != (self.z_dim,):
                raise ValueError(f"z must be [N,{self.z_dim}], not {None if z is None else list(z.shape)}")
            parts.append(normalize_2nd_moment(z.to(dtype)))
        if self.c_dim > 0:
            if c is None or c.shape[1:] != (self.c_dim,):
                raise ValueError(f"c must be [N,{self.c_dim}], not {None if c is None else list(c.shape)}")
            parts.append(normalize_2nd_moment(self.embed(c.to(dtype))))
        return torch.cat(parts, dim=1)


class SynthesisLayer(PersistentModule):
    """Modulated convolution, noise, bias and activation, x [N,in,H,W] and w [N,w_dim] -> [N,out,H*up,W*up]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: list[int] = [1, 3, 3, 1],  # noqa: B006 - init kwargs are part of the file format
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = conv_clamp
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.padding = kernel_size // 2
        self.act_gain = ACTIVATIONS[activation].gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=layout))
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution]))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: str = "random",
        fused_modconv: bool = True,
        gain: float = 1,
        noise_source: NoiseSource | None = None,
    ) -> Tensor:
        """noise_mode: 'random' (from noise_source, or torch's global generator), 'const' or 'none'.

        fused_modconv is part of the call signature; both values evaluate alike (see `modulated_conv2d`).
        """
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is 'random', 'const' or 'none', not {noise_mode!r}")
        noise = None
        if self.use_noise and noise_mode == "random":
            size = (1, self.resolution, self.resolution)
            drawn = noise_source(*size) if noise_source else torch.randn([x.shape[0], *size], device=x.device)
            noise = drawn.to(self.noise_strength.dtype) * self.noise_strength
        elif self.use_noise and noise_mode == "const":
            noise = self.noise_const * self.noise_strength
        x = modulated_conv2d(
            x, self.weight, self.affine(w), noise=noise, up=self.up, padding=self.padding,
            resample_filter=self.resample_filter, flip_weight=self.up == 1,
        )  # fmt: skip
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias.to(x.dtype), act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class ToRGBLayer(PersistentModule):
    """Modulated convolution to image channels, without demodulation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        self.weight = torch.nn.Parameter(weight.to(memory_format=layout))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        """fused_modconv is part of the call signature; both values evaluate alike."""
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, padding=self.weight.shape[2] // 2, demodulate=False)
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class SynthesisBlock(PersistentModule):
    """All layers of one resolution: x [N,in,H/2,W/2] -> [N,out,H,W] and the image so far [N,img_channels,H,W]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: list[int] = [1, 3, 3, 1],  # noqa: B006 - init kwargs are part of the file format
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        **layer_kwargs: Any,
    ) -> None:
        _check_architecture(architecture)
        super().__init__()
        self.in_channels = in_channels  # 0: the first block, which starts from a constant
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.num_conv = 0
        self.num_torgb = 0
        common: dict[str, Any] = dict(conv_clamp=conv_clamp, channels_last=self.channels_last)
        layer: dict[str, Any] = dict(w_dim=w_dim, resolution=resolution, **common, **layer_kwargs)
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, resample_filter=resample_filter, **layer)
            self.num_conv += 1
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer)
        self.num_conv += 1
        if is_last or architecture == "skip":
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **common)
            self.num_torgb += 1
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter,
                channels_last=self.channels_last,
            )  # fmt: skip

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        **layer_kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """ws [N,num_conv+num_torgb,w_dim]; the image accumulates in the parameters' type."""
        parameter = self.conv1.weight
        half = self.use_fp16 and not force_fp32 and parameter.dtype == torch.float32
        dtype = torch.float16 if half else parameter.dtype
        layout = torch.channels_last if half and self.channels_last else torch.contiguous_format
        styles = iter(ws.unbind(dim=1))
        if x is None:
            x = self.const.to(dtype=dtype).expand(ws.shape[0], -1, -1, -1)
        x = x.to(dtype=dtype, memory_format=layout)
        if self.in_channels == 0:
            x = self.conv1(x, next(styles), **layer_kwargs)
        elif self.architecture == "resnet":
            y = self.skip(x, gain=sqrt(0.5))
            x = self.conv0(x, next(styles), **layer_kwargs)
            x = y + self.conv1(x, next(styles), gain=sqrt(0.5), **layer_kwargs)
        else:
            x = self.conv0(x, next(styles), **layer_kwargs)
            x = self.conv1(x, next(styles), **layer_kwargs)
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            y = self.torgb(x, next(styles)).to(dtype=parameter.dtype, memory_format=torch.contiguous_format)
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(PersistentModule):
    """ws [N,num_ws,w_dim] -> images [N,img_channels,R,R], about [-1,1], not clamped."""

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
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = _log2(img_resolution)
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(2, self.img_resolution_log2 + 1)]
        self.num_ws = 0
        first_fp16 = _first_fp16_resolution(self.img_resolution_log2, num_fp16_res)
        in_channels = 0
        for resolution in self.block_resolutions:
            out_channels = min(channel_base // resolution, channel_max)
            is_last = resolution == img_resolution
            block = SynthesisBlock(
                in_channels, out_channels, w_dim=w_dim, resolution=resolution, img_channels=img_channels,
                is_last=is_last, use_fp16=resolution >= first_fp16, **block_kwargs,
            )  # fmt: skip
            self.num_ws += block.num_conv + (block.num_torgb if is_last else 0)
            setattr(self, f"b{resolution}", block)
            in_channels = out_channels

    def forward(self, ws: Tensor, **block_kwargs: Any) -> Tensor:
        """block_kwargs: noise_mode, noise_source, force_fp32, fused_modconv."""
        if ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must be [N,{self.num_ws},{self.w_dim}], not {list(ws.shape)}")
        x = img = None
        first = 0
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            # A block's toRGB shares its w with the next block's first convolution.
            used = ws[:, first : first + block.num_conv + block.num_torgb].to(block.conv1.weight.dtype)
            x, img = block(x, img, used, **block_kwargs)
            first += block.num_conv
        assert img is not None
        return img


class Generator(PersistentModule):
    """z [N,z_dim] and c [N,c_dim] -> images [N,img_channels,R,R]."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] = {},  # noqa: B006 - init kwargs are part of the file format
        synthesis_kwargs: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = SynthesisNetwork(
            w_dim=w_dim, img_resolution=img_resolution, img_channels=img_channels, **synthesis_kwargs
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=self.num_ws, **mapping_kwargs)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        """synthesis_kwargs: noise_mode ('random', 'const', 'none'), noise_source, force_fp32, fused_modconv."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


class MinibatchStdLayer(PersistentModule):
    """Appends num_channels maps of standard deviations over groups of samples (arXiv 1710.10196, section 3)."""

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        group = n if self.group_size is None else min(self.group_size, n)
        if n % group:
            raise ValueError(f"{n} samples do not divide into groups of {group}, the discriminator's mbstd_group_size")
        features = self.num_channels
        y = x.reshape(group, n // group, features, c // features, h, w)
        y = (y.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])
        y = y.reshape(n // group, features, 1, 1).repeat(group, 1, h, w)
        return torch.cat([x, y], dim=1)


class DiscriminatorBlock(PersistentModule):
    """All layers of one resolution: x [N,in,R,R] and the image [N,img_channels,R,R] -> half their size."""

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
        resample_filter: list[int] = [1, 3, 3, 1],  # noqa: B006 - init kwargs are part of the file format
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ) -> None:
        _check_architecture(architecture)
        super().__init__()
        self.in_channels = in_channels  # 0: the first block
        self.resolution = resolution
        self.img_channels = img_channels
        self.first_layer_idx = first_layer_idx
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(resample_filter))
        self.num_layers = 0

        def layer(cin: int, cout: int, size: int, **kwargs: Any) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            return Conv2dLayer(cin, cout, size, trainable=trainable, channels_last=self.channels_last, **kwargs)

        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, 1, activation=activation, conv_clamp=conv_clamp)
        self.conv0 = layer(tmp_channels, tmp_channels, 3, activation=activation, conv_clamp=conv_clamp)
        self.conv1 = layer(
            tmp_channels, out_channels, 3, activation=activation, down=2, resample_filter=resample_filter,
            conv_clamp=conv_clamp,
        )  # fmt: skip
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, 1, bias=False, down=2, resample_filter=resample_filter)

    def forward(
        self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        parameter = self.conv0.weight
        half = self.use_fp16 and not force_fp32 and parameter.dtype == torch.float32
        dtype = torch.float16 if half else parameter.dtype
        layout = torch.channels_last if half and self.channels_last else torch.contiguous_format
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
            y = self.skip(x, gain=sqrt(0.5))
            x = y + self.conv1(self.conv0(x), gain=sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x))
        return x, img


class DiscriminatorEpilogue(PersistentModule):
    """The last resolution: x [N,in,4,4] -> logits [N,1], or, with cmap_dim, their projection on cmap [N,cmap_dim]."""

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
        _check_architecture(architecture)
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
        self.out = FullyConnectedLayer(in_channels, 1 if cmap_dim == 0 else cmap_dim)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None, force_fp32: bool = False) -> Tensor:
        """force_fp32 is part of the call signature; this block never computes in float16."""
        x = x.to(dtype=self.conv.weight.dtype, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.to(x.dtype))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:
            x = (x * cmap).sum(dim=1, keepdim=True) / sqrt(self.cmap_dim)
        return x


class Discriminator(PersistentModule):
    """Images [N,img_channels,R,R] and c [N,c_dim] -> logits [N,1]."""

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
        block_kwargs: dict[str, Any] = {},  # noqa: B006 - init kwargs are part of the file format
        mapping_kwargs: dict[str, Any] = {},  # noqa: B006
        epilogue_kwargs: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = _log2(img_resolution)
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(self.img_resolution_log2, 2, -1)]
        first_fp16 = _first_fp16_resolution(self.img_resolution_log2, num_fp16_res)

        def channels(resolution: int) -> int:
            return min(channel_base // resolution, channel_max)

        if cmap_dim is None:
            cmap_dim = channels(4)
        if c_dim == 0:
            cmap_dim = 0
        common: dict[str, Any] = dict(img_channels=img_channels, architecture=architecture, conv_clamp=conv_clamp)
        layers = 0
        for resolution in self.block_resolutions:
            block = DiscriminatorBlock(
                channels(resolution) if resolution < img_resolution else 0, channels(resolution),
                channels(resolution // 2), resolution=resolution, first_layer_idx=layers,
                use_fp16=resolution >= first_fp16, **block_kwargs, **common,
            )  # fmt: skip
            setattr(self, f"b{resolution}", block)
            layers += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(
                z_dim=0, c_dim=c_dim, w_dim=cmap_dim, num_ws=None, w_avg_beta=None, **mapping_kwargs
            )
        self.b4 = DiscriminatorEpilogue(channels(4), cmap_dim=cmap_dim, resolution=4, **epilogue_kwargs, **common)

    def forward(self, img: Tensor, c: Tensor | None, **block_kwargs: Any) -> Tensor:
        """block_kwargs: force_fp32."""
        x: Tensor | None = None
        rest: Tensor | None = img
        for resolution in self.block_resolutions:
            x, rest = getattr(self, f"b{resolution}")(x, rest, **block_kwargs)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, rest, cmap)


def _check_architecture(architecture: str) -> None:
    if architecture not in ("orig", "skip", "resnet"):
        raise ValueError(f"architecture is 'orig', 'skip' or 'resnet', not {architecture!r}")


def _log2(resolution: int) -> int:
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"img_resolution is a power of two from 4 on, not {resolution}")
    return int(log2(resolution))


def _first_fp16_resolution(log2_resolution: int, num_fp16_res: int) -> int:
    """Blocks from this resolution on compute in float16."""
    return max(2 ** (log2_resolution + 1 - num_fp16_res), 8)
