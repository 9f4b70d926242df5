"""R3GAN's generator and discriminator: plain residual networks without styles, noise or normalisation.

Huang et al. 2024 (arXiv 2501.05441). Names of classes, arguments, attributes and parameters are those of its files.
Generator and Discriminator wrap the networks proper (`Model`), and take labels as one-hot vectors.

Stages named in FP16Stages compute in bfloat16 from float32 parameters, on every device; a network made `.double()`
computes in float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.networks.checks import check_rows
from stylegan_di.torch_utils.ops.bias_act import bias_act
from stylegan_di.torch_utils.ops.upfirdn2d import downsample2d, upsample2d
from stylegan_di.torch_utils.persistence import PersistentModule

RESAMPLING_FILTER = (1, 2, 1)
BASE = 4  # side of the smallest feature maps
SLOPE = 0.2  # of leaky ReLU below 0
RELU_POWER = 2 / (1 + SLOPE**2)  # what keeps a variance of 1 through leaky ReLU


def initialised(weight: Tensor, gain: float) -> None:
    """Draws a weight [out,...] from N(0, gain^2 / fan in)."""
    torch.nn.init.normal_(weight, 0, gain / math.sqrt(weight[0].numel()))


class Convolution(PersistentModule):
    """A convolution without bias that keeps the size; x [N,in,H,W] -> [N,out,H,W], in x's dtype."""

    _file_class: ClassVar = ("R3GAN.Networks", "Convolution")

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, gain: float = 1) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.Layer = torch.nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=False)
        initialised(self.Layer.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.Layer
        return F.conv2d(x, layer.weight.to(x.dtype), padding=layer.padding, groups=layer.groups)


class BiasedActivationCUDA(PersistentModule):
    """lrelu(x + Bias), without gain."""

    _file_class: ClassVar = ("R3GAN.FusedOperators", "BiasedActivationCUDA")

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Bias = Parameter(torch.zeros([channels]))

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x, self.Bias.to(x.dtype), act="lrelu", alpha=SLOPE, gain=1)


class ResidualBlock(PersistentModule):
    """x + W3 lrelu(W2 lrelu(W1 x + b1) + b2); W1 and W3 are 1x1, W2 is grouped. It starts as the identity.

    Args:
        channels: of x.
        cardinality: number of W2's groups.
        expansion: W2 has so many times the channels.
        kernel_size: of W2.
        blocks: number of blocks of the whole network, which scales the initial weights.
    """

    _file_class: ClassVar = ("R3GAN.Networks", "ResidualBlock")

    def __init__(self, channels: int, cardinality: int, expansion: int, kernel_size: int, blocks: int) -> None:
        super().__init__()
        expanded, gain = channels * expansion, math.sqrt(RELU_POWER) * blocks**-0.25
        self.LinearLayer1 = Convolution(channels, expanded, 1, gain=gain)
        self.LinearLayer2 = Convolution(expanded, expanded, kernel_size, groups=cardinality, gain=gain)
        self.LinearLayer3 = Convolution(expanded, channels, 1, gain=0)
        self.NonLinearity1 = BiasedActivationCUDA(expanded)
        self.NonLinearity2 = BiasedActivationCUDA(expanded)

    def forward(self, x: Tensor) -> Tensor:
        y = self.NonLinearity1(self.LinearLayer1(x))
        return x + self.LinearLayer3(self.NonLinearity2(self.LinearLayer2(y)))


class _Resampler(PersistentModule):
    """Holds the filter [taps+1,taps+1], of sum 1."""

    Kernel: Tensor

    def __init__(self, taps: Sequence[float] = RESAMPLING_FILTER) -> None:
        super().__init__()
        f = torch.tensor(taps, dtype=torch.float32)
        f = F.pad(f, [0, 1]) + F.pad(f, [1, 0])  # with that of two equal pixels
        f = torch.outer(f, f)
        self.register_buffer("Kernel", f / f.sum())


class InterpolativeUpsamplerCUDA(_Resampler):
    """Doubles the size of x [N,C,H,W]."""

    _file_class: ClassVar = ("R3GAN.Resamplers", "InterpolativeUpsamplerCUDA")

    def forward(self, x: Tensor) -> Tensor:
        return upsample2d(x, self.Kernel)


class InterpolativeDownsamplerCUDA(_Resampler):
    """Halves the size of x [N,C,H,W]."""

    _file_class: ClassVar = ("R3GAN.Resamplers", "InterpolativeDownsamplerCUDA")

    def forward(self, x: Tensor) -> Tensor:
        return downsample2d(x, self.Kernel)


class UpsampleLayer(PersistentModule):
    """The transition to the next stage of a generator: 1x1 convolution if the width changes, then upsampling."""

    _file_class: ClassVar = ("R3GAN.Networks", "UpsampleLayer")

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.Resampler = InterpolativeUpsamplerCUDA(taps)
        if in_channels != out_channels:
            self.LinearLayer = Convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.Resampler(self.LinearLayer(x) if hasattr(self, "LinearLayer") else x)


class DownsampleLayer(PersistentModule):
    """The transition to the next stage of a discriminator: downsampling, then 1x1 convolution if the width changes."""

    _file_class: ClassVar = ("R3GAN.Networks", "DownsampleLayer")

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.Resampler = InterpolativeDownsamplerCUDA(taps)
        if in_channels != out_channels:
            self.LinearLayer = Convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Resampler(x)
        return self.LinearLayer(x) if hasattr(self, "LinearLayer") else x


class GenerativeBasis(PersistentModule):
    """The first feature maps [N,channels,4,4] of latents [N,in_features]: learned maps, scaled."""

    _file_class: ClassVar = ("R3GAN.Networks", "GenerativeBasis")

    def __init__(self, in_features: int, channels: int) -> None:
        super().__init__()
        self.Basis = Parameter(torch.randn([channels, BASE, BASE]))
        self.LinearLayer = torch.nn.Linear(in_features, channels, bias=False)
        initialised(self.LinearLayer.weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.Basis.to(x.dtype) * F.linear(x, self.LinearLayer.weight.to(x.dtype))[:, :, None, None]


class DiscriminativeBasis(PersistentModule):
    """The features [N,out_features] of the last feature maps [N,channels,4,4]: products with learned maps, combined."""

    _file_class: ClassVar = ("R3GAN.Networks", "DiscriminativeBasis")

    def __init__(self, channels: int, out_features: int) -> None:
        super().__init__()
        self.Basis = torch.nn.Conv2d(channels, channels, BASE, groups=channels, bias=False)
        self.LinearLayer = torch.nn.Linear(channels, out_features, bias=False)
        initialised(self.Basis.weight, 1)
        initialised(self.LinearLayer.weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.Basis.weight.to(x.dtype), groups=self.Basis.groups).flatten(1)
        return F.linear(x, self.LinearLayer.weight.to(x.dtype))


class _Stage(PersistentModule):
    """The layers at one resolution, which compute in DataType where the parameters are float32."""

    def __init__(self, layers: Sequence[torch.nn.Module], half: bool) -> None:
        super().__init__()
        self.Layers = torch.nn.ModuleList(layers)
        self.DataType = torch.bfloat16 if half else torch.float32

    def dtype(self) -> torch.dtype:
        own = next(self.parameters()).dtype
        return self.DataType if own == torch.float32 else own

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype())
        for layer in self.Layers:
            x = layer(x)
        return x


class GeneratorStage(_Stage):
    """A basis or a transition, then residual blocks."""

    _file_class: ClassVar = ("R3GAN.Networks", "GeneratorStage")


class DiscriminatorStage(_Stage):
    """Residual blocks, then a transition or a basis."""

    _file_class: ClassVar = ("R3GAN.Networks", "DiscriminatorStage")


class _Layout:
    """The stages' numbers, checked, from the arguments of Generator and Discriminator."""

    def __init__(
        self,
        widths: Sequence[int],
        cardinalities: Sequence[int],
        blocks: Sequence[int],
        expansion: int,
        halves: Sequence[int],
        kernel_size: int,
    ) -> None:
        if not len(widths) == len(cardinalities) == len(blocks) > 0 or min(blocks) < 1:
            raise ValueError(f"{widths=}, {cardinalities=}, {blocks=}; accepted: one or more, as many of each")
        if any(width * expansion % groups for width, groups in zip(widths, cardinalities, strict=True)):
            raise ValueError(f"{widths=} times {expansion=} in groups of {cardinalities=}; they must be multiples")
        if kernel_size % 2 == 0:
            raise ValueError(f"{kernel_size=}; accepted: odd numbers")
        self.widths = widths
        self.halves = {index % len(widths) for index in halves}
        self.blocks = [
            [ResidualBlock(width, groups, expansion, kernel_size, sum(blocks)) for _ in range(count)]
            for width, groups, count in zip(widths, cardinalities, blocks, strict=True)
        ]


class _Generator(PersistentModule):
    """R3GAN.Networks.Generator: maps latents, and labels, to images."""

    _file_class: ClassVar = ("R3GAN.Networks", "Generator")

    def __init__(
        self, layout: _Layout, z_dim: int, c_dim: int, embedded: int, channels: int, taps: Sequence[float]
    ) -> None:
        super().__init__()
        widths, stages = layout.widths, []
        for index, blocks in enumerate(layout.blocks):
            if index == 0:
                first: torch.nn.Module = GenerativeBasis(z_dim + (embedded if c_dim else 0), widths[0])
            else:
                first = UpsampleLayer(widths[index - 1], widths[index], taps)
            stages.append(GeneratorStage([first, *blocks], index in layout.halves))
        self.MainLayers = torch.nn.ModuleList(stages)
        self.AggregationLayer = Convolution(widths[-1], channels, 1)
        if c_dim:
            self.EmbeddingLayer = torch.nn.Linear(c_dim, embedded, bias=False)
            initialised(self.EmbeddingLayer.weight, 1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        if y is not None:
            x = torch.cat([x, self.EmbeddingLayer(y)], dim=1)
        for stage in self.MainLayers:
            x = stage(x)
        return self.AggregationLayer(x)


class _Discriminator(PersistentModule):
    """R3GAN.Networks.Discriminator: maps images, and labels, to logits [N]."""

    _file_class: ClassVar = ("R3GAN.Networks", "Discriminator")

    def __init__(self, layout: _Layout, c_dim: int, embedded: int, channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        widths, stages = layout.widths, []
        for index, blocks in enumerate(layout.blocks):
            if index == len(widths) - 1:
                last: torch.nn.Module = DiscriminativeBasis(widths[-1], embedded if c_dim else 1)
            else:
                last = DownsampleLayer(widths[index], widths[index + 1], taps)
            stages.append(DiscriminatorStage([*blocks, last], index in layout.halves))
        self.ExtractionLayer = Convolution(channels, widths[0], 1)
        self.MainLayers = torch.nn.ModuleList(stages)
        if c_dim:
            self.EmbeddingLayer = torch.nn.Linear(c_dim, embedded, bias=False)
            initialised(self.EmbeddingLayer.weight, 1 / math.sqrt(embedded))

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = self.ExtractionLayer(x.to(self.MainLayers[0].dtype()))  # type: ignore[operator]
        for stage in self.MainLayers:
            x = stage(x)
        return x.flatten() if y is None else (x * self.EmbeddingLayer(y)).sum(dim=1)


class Generator(PersistentModule):
    """images = Model(z, c).

    Args:
        NoiseDimension: length of z.
        WidthPerStage: channels at each resolution from 4 on, which double.
        CardinalityPerStage, BlocksPerStage: groups of the convolutions, and number of residual blocks, likewise.
        ExpansionFactor: how many times wider residual blocks are inside.
        FP16Stages: the stages that compute in bfloat16; negative numbers count from the end.
        c_dim: number of classes, 0: unconditional.
        img_resolution: side of the images, 4 * 2^(stages - 1).
        ConditionEmbeddingDimension: length of the embedded label, 0 for none.
        KernelSize: of the grouped convolutions.
        ResamplingFilter: taps of the filter between resolutions.
        img_channels: of the images; R3GAN's own have 3.
    """

    _file_class: ClassVar = ("training.networks", "Generator")

    def __init__(
        self,
        NoiseDimension: int,
        WidthPerStage: Sequence[int],
        CardinalityPerStage: Sequence[int],
        BlocksPerStage: Sequence[int],
        ExpansionFactor: int,
        FP16Stages: Sequence[int],
        c_dim: int,
        img_resolution: int,
        ConditionEmbeddingDimension: int = 0,
        KernelSize: int = 3,
        ResamplingFilter: Sequence[float] = RESAMPLING_FILTER,
        img_channels: int = 3,
    ) -> None:
        _check_shape(WidthPerStage, img_resolution, c_dim, ConditionEmbeddingDimension)
        super().__init__()
        self.z_dim = NoiseDimension
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        layout = _Layout(WidthPerStage, CardinalityPerStage, BlocksPerStage, ExpansionFactor, FP16Stages, KernelSize)
        self.Model = _Generator(
            layout, NoiseDimension, c_dim, ConditionEmbeddingDimension, img_channels, ResamplingFilter
        )

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Images [N,img_channels,R,R] of z [N,z_dim], standard normal, and c [N,c_dim], one-hot, ignored if c_dim is 0.

        They are of the last stage's type.
        """
        dtype = next(self.parameters()).dtype
        return self.Model(check_rows("z", z, self.z_dim).to(dtype), _labels(c, self.c_dim, dtype))


class Discriminator(PersistentModule):
    """logits = Model(images, c); the stages go from the highest resolution to 4. See `Generator` for the arguments."""

    _file_class: ClassVar = ("training.networks", "Discriminator")

    def __init__(
        self,
        WidthPerStage: Sequence[int],
        CardinalityPerStage: Sequence[int],
        BlocksPerStage: Sequence[int],
        ExpansionFactor: int,
        FP16Stages: Sequence[int],
        c_dim: int,
        img_resolution: int,
        ConditionEmbeddingDimension: int = 0,
        KernelSize: int = 3,
        ResamplingFilter: Sequence[float] = RESAMPLING_FILTER,
        img_channels: int = 3,
    ) -> None:
        _check_shape(WidthPerStage, img_resolution, c_dim, ConditionEmbeddingDimension)
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        layout = _Layout(WidthPerStage, CardinalityPerStage, BlocksPerStage, ExpansionFactor, FP16Stages, KernelSize)
        self.Model = _Discriminator(layout, c_dim, ConditionEmbeddingDimension, img_channels, ResamplingFilter)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Logits [N] of images x [N,img_channels,R,R] and c [N,c_dim], one-hot, ignored if c_dim is 0."""
        check_rows("images", x, self.img_channels, self.img_resolution, self.img_resolution)
        return self.Model(x, _labels(c, self.c_dim, next(self.parameters()).dtype))


def _check_shape(widths: Sequence[int], resolution: int, c_dim: int, embedded: int) -> None:
    if resolution != BASE * 2 ** (len(widths) - 1):
        raise ValueError(f"img_resolution={resolution}; accepted with {len(widths)} stages: {BASE} * 2^(stages - 1)")
    if (c_dim > 0) != (embedded > 0):
        raise ValueError(f"ConditionEmbeddingDimension={embedded} with {c_dim=}; accepted: above 0 for both or none")


def _labels(c: Tensor | None, c_dim: int, dtype: torch.dtype) -> Tensor | None:
    return check_rows("c", c, c_dim).to(dtype) if c_dim else None
