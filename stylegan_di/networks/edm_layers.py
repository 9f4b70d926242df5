"""The layers of EDM's networks: resampling convolutions, embeddings, self-attention and the residual block.

Names of classes, arguments, attributes and parameters are those of NVlabs' file format. Every attribute of a layer is
written to its pickle, so layers have no attributes beyond the format's. The block follows arXiv 2206.00364, app. F.2.

Layers cast their parameters to their input's dtype: modules made `.double()` compute in float64 throughout, and
float16 activations work with float32 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from stylegan_di.torch_utils.ops import winograd
from stylegan_di.torch_utils.ops.bias_act import bias_act
from stylegan_di.torch_utils.ops.bias_add import bias_add
from stylegan_di.torch_utils.ops.group_norm_silu import group_norm_silu
from stylegan_di.torch_utils.persistence import PersistentModule


def random_weight(shape: Sequence[int], mode: str, fan_in: int, fan_out: int) -> Tensor:
    """Draws a parameter's initial values from torch's global generator, uniform ('*_uniform') or normal ('*_normal').

    Their variance is 2 / (fan_in + fan_out) for 'xavier_*' and 1 / fan_in for 'kaiming_*'.
    """
    std = {"xavier": math.sqrt(2 / (fan_in + fan_out)), "kaiming": math.sqrt(1 / fan_in)}
    family, _, law = mode.partition("_")
    if family not in std or law not in ("uniform", "normal"):
        raise ValueError(f"init_mode={mode!r}; accepted: {{xavier,kaiming}}_{{uniform,normal}}")
    if law == "normal":
        return torch.randn(shape) * std[family]
    return (torch.rand(shape) * 2 - 1) * (std[family] * math.sqrt(3))


def cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Casts a parameter to the dtype of x; None stays None."""
    return None if parameter is None else parameter.to(x.dtype)


def with_labels(x: Tensor, labels: Tensor | None) -> Tensor:
    """x [...,n] and behind it labels [...,label_dim] one-hot, scaled to the length of n standard normal numbers.

    Unscaled, a class would be one of n + 1 numbers, and be learned late. None: x alone.
    """
    return x if labels is None else torch.cat([x, labels.to(x) * math.sqrt(x.shape[-1])], dim=-1)


class Linear(PersistentModule):
    """x [..., in_features] -> [..., out_features]."""

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        draw = partial(random_weight, mode=init_mode, fan_in=in_features, fan_out=out_features)
        self.weight = Parameter(draw([out_features, in_features]) * init_weight)
        self.bias = Parameter(draw([out_features]) * init_bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), cast(self.bias, x))


def upsample(x: Tensor, resample_filter: Tensor, padding: int) -> Tensor:
    """Doubles the size: inserts zeros, then filters by [1,1,n,n] with a gain of 4; two taps repeat every pixel."""
    if resample_filter.shape[-1] == 2:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels = x.shape[1]
    kernel = (resample_filter * 4).to(x.dtype).expand(channels, -1, -1, -1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=channels)


def downsample(x: Tensor, resample_filter: Tensor, padding: int) -> Tensor:
    """Halves the size: applies the filter [1,1,n,n] at every other pixel; two taps average 2x2 pixels."""
    if resample_filter.shape[-1] == 2:
        return F.avg_pool2d(x, 2)
    channels = x.shape[1]
    kernel = resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolves x [B,C,H,W]; on a GPU an op of ours adds the bias, because PyTorch's pass for it is slow."""
    if bias is None or not x.is_cuda:
        return F.conv2d(x, weight, bias, padding=padding)
    y = F.conv2d(x, weight, padding=padding)
    return bias_act(y, bias.to(y.dtype))


class Conv2d(PersistentModule):
    """Resamples by two (up, down or not at all), then convolves with an odd `kernel` size; 0 only resamples.

    `fused_resample` pads once for both steps, which changes only the borders; when downsampling, it convolves first.
    """

    weight: Tensor | None
    bias: Tensor | None
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("a Conv2d goes up or down, not both")
        if list(resample_filter) != list(resample_filter)[::-1]:
            raise ValueError(f"resample_filter={list(resample_filter)}; accepted: symmetric taps, such as [1, 3, 3, 1]")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        area = kernel**2
        draw = partial(random_weight, mode=init_mode, fan_in=in_channels * area, fan_out=out_channels * area)
        weight = (draw([out_channels, in_channels, kernel, kernel]) * init_weight) if kernel else None
        self.weight = None if weight is None else Parameter(weight.to(memory_format=torch.channels_last))
        self.bias = Parameter(draw([out_channels]) * init_bias) if kernel and bias else None
        taps = torch.as_tensor(resample_filter, dtype=torch.float32)
        taps = torch.outer(taps, taps)[None, None] / taps.sum().square()
        self.register_buffer("resample_filter", taps if up or down else None)

    def forward(self, x: Tensor, gain: float = 1, *, add_bias: bool = True) -> Tensor:
        """Convolves x [B,in_channels,H,W] and multiplies by gain, which is applied to weight and bias to save time."""
        resample = upsample if self.up else downsample
        filter_pad = (self.resample_filter.shape[-1] - 1) // 2 if self.up or self.down else 0
        weight = self.weight
        if weight is None:
            x = resample(x, self.resample_filter, filter_pad) if self.up or self.down else x
            return x if gain == 1 else x * gain
        bias = cast(self.bias, x) if add_bias else None
        if gain != 1 and bias is not None:
            bias = bias * gain
        if not self.fused_resample and (self.up or self.down):
            x = resample(x, self.resample_filter, filter_pad)
        if not self.fused_resample and (ready := winograd.prepared(weight, x)) is not None:
            return ready.convolve(x, gain, bias)
        weight = weight.to(x.dtype)
        if gain != 1:
            weight = weight * gain
        weight_pad = weight.shape[-1] // 2
        if self.fused_resample and self.up:
            x = upsample(x, self.resample_filter, max(filter_pad - weight_pad, 0))
            return convolve(x, weight, bias, padding=max(weight_pad - filter_pad, 0))
        if self.fused_resample and self.down:
            x = convolve(x, weight, bias, padding=weight_pad + filter_pad)
            return downsample(x, self.resample_filter, 0)  # its taps sum to 1, so the bias can be added before it
        return convolve(x, weight, bias, padding=weight_pad)


def prepare_convolutions(network: torch.nn.Module) -> int:
    """Makes the filters of a network that stays frozen ready for `ops.winograd`, on a CPU; returns how many."""
    layers = [module for module in network.modules() if isinstance(module, Conv2d) and not module.fused_resample]
    return winograd.prepare(layer.weight for layer in layers if layer.weight is not None)


class GroupNorm(PersistentModule):
    """Group normalisation with at least four channels per group and at most 32 groups.

    Raises:
        ValueError: if the channels do not divide into so many groups.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
        if not self.num_groups or num_channels % self.num_groups:
            raise ValueError(f"{num_channels} channels do not divide into {self.num_groups} groups")
        self.eps = eps
        self.weight = Parameter(torch.ones(num_channels))
        self.bias = Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """Normalises x [N,C,H,W] and, with `silu`, applies SiLU."""
        return group_norm_silu(x, *self.parameters_as(x), self.num_groups, self.eps, silu=silu)

    def then_silu(
        self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """silu(norm(x) * (scale + 1) + shift) if scale is given, else silu(norm(x + shift)); both are [N or 1,C].

        before: [C], added to x first; None for nothing.
        """
        weight, bias = self.parameters_as(x)
        first = None if before is None else before[None]
        if scale is not None:
            assert shift is not None
            weight, bias = weight * (scale + 1), torch.addcmul(shift, bias, scale + 1)
        elif shift is not None:
            first = shift if first is None else shift + first
        return group_norm_silu(x, weight, bias, self.num_groups, self.eps, shift=first)

    def parameters_as(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias [C] in the dtype of x."""
        return self.weight.to(x.dtype), self.bias.to(x.dtype)


class PositionalEmbedding(PersistentModule):
    """x [B] -> [B,num_channels]: cosines, then sines, at frequencies falling geometrically from 1 to 1 / max_positions.

    With `endpoint` the last frequency is 1 / max_positions, otherwise the series stops one step before it.
    """

    def __init__(self, num_channels: int, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.max_positions = max_positions
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.num_channels // 2
        exponents = torch.arange(half, dtype=x.dtype, device=x.device) / (half - (1 if self.endpoint else 0))
        angles = torch.outer(x, (1 / self.max_positions) ** exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(PersistentModule):
    """x [B] -> [B,num_channels]: cosines, then sines, at random frequencies, a buffer that is never trained."""

    freqs: Tensor

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.freqs.to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels: qkv [B, heads * C * 3, H, W], q, k and v varying fastest -> [B, heads * C, H, W].

    The softmax is computed in float32, or in float64 for float64 inputs. Only PyTorch's plain attention has second
    derivatives; select it by `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    batch, channels, height, width = qkv.shape
    pixels = qkv.permute(0, 2, 3, 1).reshape(batch, height * width, num_heads, channels // (3 * num_heads), 3)
    q, k, v = pixels.permute(4, 0, 2, 1, 3).contiguous()  # PyTorch's fast attention needs contiguous channels
    return attention_of(q, k, v, torch.Size([batch, channels // 3, height, width]))


def attention_of(q: Tensor, k: Tensor, v: Tensor, shape: torch.Size) -> Tensor:
    """Self-attention: q, k, v [B,heads,H*W,C] -> images of `shape` [B,heads*C,H,W]."""
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return y.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def projections(layer: Conv2d, x: Tensor, num_heads: int) -> list[Tensor]:
    """q, k and v [B,heads,H*W,C] of a layer that computes them for `attention` from x [B,heads*C,H,W].

    It reorders the layer's weights, which spares a reordering of what they give.
    """

    def parted(parameter: Tensor) -> Tensor:
        return parameter.to(x.dtype).unflatten(0, (num_heads, -1, 3)).movedim(2, 0).flatten(0, 2)

    assert layer.weight is not None
    assert layer.bias is not None
    y = convolve(x, parted(layer.weight), parted(layer.bias), padding=0)
    return [
        part.permute(0, 2, 3, 1).reshape(len(x), -1, num_heads, part.shape[1] // num_heads).transpose(1, 2)
        for part in y.chunk(3, dim=1)
    ]


def adds_late(x: Tensor) -> bool:
    """Whether a block leaves biases out of its convolutions: on a GPU, where their own pass over memory costs time."""
    return x.is_cuda


def run(block: torch.nn.Module, x: Tensor, emb: Tensor, recompute: bool) -> Tensor:
    """block(x, emb), whose activations are computed again in the backward pass instead of being kept if recompute."""
    output: Tensor
    if recompute:
        output = checkpoint(block, x, emb, use_reentrant=False, preserve_rng_state=block.training)
    else:
        output = block(x, emb)
    return output


def joined(h: Tensor, other: Tensor, alpha: float, gain: float, *layers: Conv2d) -> Tensor:
    """h + alpha * other; with it the biases that layers have left out, times gain."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if not adds_late(h) or not biases:
        return h.add(other, alpha=alpha)
    return bias_add(h, sum(biases[1:], start=biases[0]) * gain, other, alpha)


class UNetBlock(PersistentModule):
    """Residual block of both U-Nets, conditioned on emb [B,emb_channels], with optional resampling and self-attention.

    Unless `num_heads` is given, each head has `channels_per_head` channels; a block with fewer channels than that has
    no attention.
    """

    skip: Conv2d | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0,
        skip_scale: float = 1,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: dict[str, Any] | None = None,
        init_zero: dict[str, Any] | None = None,
        init_attn: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        init = init or {}
        init_zero = {"init_weight": 0} if init_zero is None else init_zero
        init_attn = init if init_attn is None else init_attn
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.emb_channels = emb_channels
        self.num_heads = 0 if not attention else num_heads or out_channels // channels_per_head
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels, which do not divide into {self.num_heads} heads")
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.adaptive_scale = adaptive_scale

        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, **resample, **init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), **init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, **init_zero)
        self.skip = None
        if in_channels != out_channels or up or down:
            kernel = 1 if resample_proj or in_channels != out_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel=kernel, **resample, **init)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, **init_attn)
            self.proj = Conv2d(out_channels, out_channels, kernel=1, **init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        late = adds_late(x)
        h = self.conv0(self.norm0.then_silu(x), add_bias=not late)
        bias = cast(self.conv0.bias, h) if late else None
        params = self.affine(emb).to(h.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = self.norm1.then_silu(h, shift, scale, bias)
        else:
            h = self.norm1.then_silu(h, shift=params, before=bias)
        gain = self.skip_scale
        h = self.conv1(F.dropout(h, p=self.dropout, training=self.training), gain, add_bias=not late)
        if self.skip is None:
            x = joined(h, x, gain, gain, self.conv1)
        else:
            x = joined(h, self.skip(x, gain, add_bias=not late), 1, gain, self.conv1, self.skip)
        if self.num_heads:
            h = self.norm2(x)
            if late:
                q, k, v = projections(self.qkv, h, self.num_heads)
                h = attention_of(q, k, v, h.shape)
            else:
                h = attention(self.qkv(h), self.num_heads)
            x = joined(self.proj(h, gain, add_bias=not late), x, gain, gain, self.proj)
        return x
