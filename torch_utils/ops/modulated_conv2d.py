"""Modulated convolution (Karras et al. 2020, arXiv 1912.04958, section 2.2, equations 1-3).

With styles s and weights w, sample n is convolved with w', or with w' * d if it is demodulated:

    w'[n,o,i,k] = s[n,i] * w[o,i,k],   d[n,o] = rsqrt(sum_{i,k} w'[n,o,i,k]^2 + eps).

Per-sample weights are never formed: by linearity the styles can scale the input and d the output of one convolution
that all samples share, and sum_{i,k} w'^2 = s^2 @ (sum_k w^2)^T.
Noise, bias, activation and clamp follow in the same operator as d, see `modconv_epilogue`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_di.torch_utils.ops.bias_act import bias_act
from stylegan_di.torch_utils.ops.conv2d_resample import conv2d_resample, upsampling_conv
from stylegan_di.torch_utils.ops.modconv_epilogue import FUSED_ACTIVATIONS, modconv_epilogue
from stylegan_di.torch_utils.ops.upfirdn2d import add_padding, parse_padding, upsample_padding

EPSILON = 1e-8


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    b: Tensor | None = None,
    act: str = "linear",
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Convolves each sample of x [N,I,H,W] with weight [O,I,kh,kw] scaled by its styles [N,I]; see `conv2d_resample`.

    Args:
        noise: added to the result, broadcast to [N,O,H',W'].
        demodulate: whether to normalise each output channel's weights to unit length.
        b, act, gain, clamp: bias and activation of the result, as in `bias_act`.

    Returns [N,O,H',W'], of x's or autocast's dtype.
    """
    scale, device = None, x.device.type
    if demodulate:
        computes_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if computes_in == torch.float16:
            weight, styles = _within_half_range(weight, styles)
        with torch.autocast(device, enabled=False):
            scale = torch.rsqrt(styles.square() @ weight.square().sum([2, 3]).t() + EPSILON)
    elif weight.shape[2:] == (1, 1) and up == 1 and padding in (0, [0, 0], [0, 0, 0, 0]):
        y = _per_sample_product(x, weight[:, :, 0, 0], styles)
        noise, b = _as(noise, y), _as(b, y)
        return bias_act(y if noise is None else y + noise, b, act=act, gain=gain, clamp=clamp)
    x = x * styles.to(x.dtype)[:, :, None, None]
    y, fir = _convolve(x, weight.to(x.dtype), up, padding, resample_filter, flip_weight)
    scale, noise, b = _as(scale, y), _as(noise, y), _as(b, y)
    if act in FUSED_ACTIVATIONS:
        noise = None if noise is None else noise.reshape(-1, 1, *noise.shape[-2:])
        return modconv_epilogue(y, *fir, scale=scale, noise=noise, b=b, act=act, gain=gain, clamp=clamp)
    y = modconv_epilogue(y, *fir, scale=scale)
    return bias_act(y if noise is None else y + noise, b, act=act, gain=gain, clamp=clamp)


def _as(value: Tensor | None, y: Tensor) -> Tensor | None:
    return None if value is None else value.to(y.dtype)


def _per_sample_product(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    """Computes the 1x1 convolution of each sample with weight [O,I] scaled by its styles, as one batched product."""
    y = torch.bmm((weight * styles[:, None, :]).to(x.dtype), x.flatten(2))
    return y.unflatten(2, x.shape[2:])


Fir = tuple[Tensor | None, Sequence[int], float]  # a filter, its padding, its gain


def _convolve(
    x: Tensor, weight: Tensor, up: int, padding: int | Sequence[int], f: Tensor | None, flip_weight: bool
) -> tuple[Tensor, Fir]:
    """Returns the convolution, and the filter that must still be applied to it."""
    if up == 1 or f is None or f.ndim == 1 or weight.shape[2:] == (1, 1):
        return conv2d_resample(x, weight, f, up, padding=padding, flip_weight=flip_weight), (None, [0, 0, 0, 0], 1)
    pads = add_padding(parse_padding(padding), upsample_padding(f, [up, up]))
    y, pads = upsampling_conv(x, weight, up, pads, flip_weight=flip_weight)
    return y, (f, pads, up**2)


def _within_half_range(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Scales weights and styles so that sums stay within float16's range; demodulation cancels the factors."""
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax([1, 2, 3], keepdim=True) * fan_in**0.5)
    return weight, styles / styles.abs().amax(1, keepdim=True)
