"""The networks' operations in the plain way of the original code, as a reference for benchmarks.

Modulated convolutions form the weights of every sample and convolve in groups (in train mode they scale activations
but still form the weights to demodulate). FIR filters insert zeros and pad before they filter. Biases, activations and
normalisations are one step each, attention is two einsums around a softmax, and activations are NCHW. The code follows
the papers' equations (Karras et al. 2020, arXiv 1912.04958; Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.networks import edm_layers, edm_unets, stylegan2, stylegan2_layers
from stylegan_di.torch_utils.ops import conv2d_resample as resample
from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS
from stylegan_di.torch_utils.ops.upfirdn2d import parse_factors, parse_padding, upsample_padding


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    act: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Applies bias, activation, gain and clamp, one step each."""
    if b is not None:
        x = x + b[None, :, None, None] if x.ndim == 4 else x + b
    x = {"linear": lambda x: x, "lrelu": lambda x: F.leaky_relu(x, 0.2)}[act](x)
    gain = ACTIVATIONS[act].default_gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Inserts zeros, pads, convolves depthwise and keeps every down-th pixel; f is 2-D."""
    f = torch.ones([1, 1]) if f is None else f
    (upx, upy), (downx, downy), pads = parse_factors(up), parse_factors(down), parse_padding(padding)
    batch, channels, height, width = x.shape
    x = F.pad(x.reshape(batch, channels, height, 1, width, 1), [0, upx - 1, 0, 0, 0, upy - 1])
    x = x.reshape(batch, channels, height * upy, width * upx)
    x = F.pad(x, [max(pad, 0) for pad in pads])
    left, right, top, bottom = (max(-pad, 0) for pad in pads)
    x = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
    taps = (f * gain if flip_filter else (f * gain).flip([0, 1])).to(x.dtype)
    return F.conv2d(x, taps.repeat(channels, 1, 1, 1), groups=channels)[:, :, ::downy, ::downx]


def upsample2d(x: Tensor, f: Tensor | None) -> Tensor:
    """Doubles the size."""
    return upfirdn2d(x, f, up=2, padding=upsample_padding(f, [2, 2]), gain=4)


def modulated_conv2d(grouped: bool, x: Tensor, weight: Tensor, styles: Tensor, **options: Any) -> Tensor:
    """Modulated convolution, noise, bias and activation; grouped convolves each sample with its own weights."""
    up, padding, f = options.get("up", 1), options.get("padding", 0), options.get("resample_filter")
    flip, demodulate = options.get("flip_weight", True), options.get("demodulate", True)
    noise, after = options.get("noise"), {key: options.get(key) for key in ("b", "gain", "clamp")}
    own = weight[None] * styles[:, None, :, None, None]  # [N,O,I,kh,kw]
    scale = (own.square().sum([2, 3, 4]) + 1e-8).rsqrt() if demodulate else None
    batch = len(x)
    if grouped:
        if scale is not None:
            own = own * scale[:, :, None, None, None]
        x = x.reshape(1, -1, *x.shape[2:])
        y = resample.conv2d_resample(
            x, own.flatten(0, 1), f, up, padding=padding, groups=batch, flip_weight=flip
        )
        y = y.reshape(batch, -1, *y.shape[2:])
    else:
        x = x * styles[:, :, None, None]
        y = resample.conv2d_resample(x, weight, f, up, padding=padding, flip_weight=flip)
        y = y if scale is None else y * scale[:, :, None, None]
    y = y if noise is None else y + noise
    return bias_act(y, act=options.get("act", "linear"), **after)


def fully_connected(layer: stylegan2_layers.FullyConnectedLayer, x: Tensor) -> Tensor:
    """Scales weights and biases, then multiplies."""
    bias = None if layer.bias is None else layer.bias * layer.bias_gain
    if layer.activation == "linear":
        return F.linear(x, layer.weight * layer.weight_gain, bias)
    return bias_act(F.linear(x, layer.weight * layer.weight_gain), bias, act=layer.activation)


def attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Two einsums around a softmax."""
    batch, channels, height, width = qkv.shape
    q, k, v = qkv.reshape(batch * num_heads, channels // (3 * num_heads), 3, height * width).unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / q.shape[1] ** 0.5).softmax(dim=2)
    return torch.einsum("nqk,nck->ncq", weights, v).reshape(batch, channels // 3, height, width)


def group_norm(layer: edm_layers.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
    """Normalises, then activates, one step each."""
    x = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    return F.silu(x) if silu else x


def norm_silu(
    layer: edm_layers.GroupNorm, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Shifts, normalises and activates, one step each."""
    if scale is not None:
        assert shift is not None
        return F.silu(torch.addcmul(shift[:, :, None, None], group_norm(layer, x), scale[:, :, None, None] + 1))
    return F.silu(group_norm(layer, x if shift is None else x + shift[:, :, None, None]))


def unet_block(block: edm_layers.UNetBlock, x: Tensor, emb: Tensor) -> Tensor:
    """Computes the residual block, with its scale as a separate step."""
    h = block.conv0(block.norm0.then_silu(x))
    params = block.affine(emb)
    if block.adaptive_scale:
        scale, shift = params.chunk(2, dim=1)
        h = block.norm1.then_silu(h, shift, scale)
    else:
        h = block.norm1.then_silu(h, shift=params)
    h = block.conv1(F.dropout(h, p=block.dropout, training=block.training))
    x = (h + (x if block.skip is None else block.skip(x))) * block.skip_scale
    if block.num_heads:
        x = (block.proj(attention(block.qkv(block.norm2(x)), block.num_heads)) + x) * block.skip_scale
    return x


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Leaves the bias to PyTorch."""
    return F.conv2d(x, weight, bias, padding=padding)


def upsample(x: Tensor, resample_filter: Tensor, padding: int) -> Tensor:
    """Doubles the size by a depthwise transposed convolution."""
    channels = x.shape[1]
    kernel = (resample_filter * 4).tile([channels, 1, 1, 1])
    return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=channels)


def downsample(x: Tensor, resample_filter: Tensor, padding: int) -> Tensor:
    """Halves the size by a depthwise convolution."""
    channels = x.shape[1]
    return F.conv2d(x, resample_filter.tile([channels, 1, 1, 1]), stride=2, padding=padding, groups=channels)


def fir_chain(x: Tensor, f: Tensor, padding: Sequence[int], scale: Tensor, noise: Tensor, b: Tensor) -> Tensor:
    """Applies FIR filter, demodulation, noise, bias and leaky ReLU, one step each."""
    y = upfirdn2d(x, f, padding=padding, gain=4)
    return bias_act(y * scale[:, :, None, None] + noise, b, act="lrelu")


@contextlib.contextmanager
def plain_networks(*, grouped: bool) -> Iterator[None]:
    """Makes StyleGAN2 and the U-Nets compute in the plain way: as in evaluation if grouped, else as in training."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (stylegan2_layers, "modulated_conv2d", lambda *args, **kwargs: modulated_conv2d(grouped, *args, **kwargs)),
            (stylegan2_layers, "bias_act", bias_act),
            (stylegan2_layers.FullyConnectedLayer, "forward", fully_connected),
            (stylegan2, "upsample2d", upsample2d),
            (stylegan2, "LAYOUT", torch.contiguous_format),
            (resample, "upfirdn2d", upfirdn2d),
            (edm_unets, "LAYOUT", torch.contiguous_format),
            (edm_layers, "attention", attention),
            (edm_layers, "upsample", upsample),
            (edm_layers, "downsample", downsample),
            (edm_layers.UNetBlock, "forward", unet_block),
            (edm_layers, "convolve", convolve),
            (edm_layers.GroupNorm, "forward", group_norm),
            (edm_layers.GroupNorm, "then_silu", norm_silu),
        ):
            stack.enter_context(patch.object(owner, name, replacement))
        yield
