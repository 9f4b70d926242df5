"""Modulated convolution (Karras et al. 2020, arXiv 1912.04958, section 2.2, equations 1-3).

With styles s and weights w, the sample n is convolved with

    w'[n,o,i,k] = s[n,i] * w[o,i,k],   or   w'[n,o,i,k] * d[n,o],   d[n,o] = rsqrt(sum_{i,k} w'[n,o,i,k]^2 + eps).

By linearity the styles scale the input and d the output of one convolution that all samples share, and
sum_{i,k} w'^2 = s^2 @ (sum_k w^2)^T: per-sample weights are never formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_utils.ops.conv2d_resample import conv2d_resample

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
) -> Tensor:
    """Convolve each sample of x [N,I,H,W] with weight [O,I,kh,kw] scaled by its styles [N,I]; see `conv2d_resample`.

    Args:
        noise: added to the result, broadcast to [N,O,H',W'].
        demodulate: whether each output channel's weights are brought to unit length.

    Returns [N,O,H',W'], of x's type.
    """
    if x.dtype == torch.float16 and demodulate:
        weight, styles = _within_half_range(weight, styles)
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(x, weight.to(x.dtype), resample_filter, up, padding=padding, flip_weight=flip_weight)
    if not demodulate:
        return y if noise is None else y + noise.to(y.dtype)
    scale = torch.rsqrt(styles.square() @ weight.square().sum([2, 3]).t() + EPSILON).to(y.dtype)[:, :, None, None]
    return y * scale if noise is None else torch.addcmul(noise.to(y.dtype), y, scale)


def _within_half_range(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and styles scaled so that sums stay within float16; demodulation takes the factors out again."""
    fan_in = weight[0].numel()
    weight = weight / (weight.abs().amax([1, 2, 3], keepdim=True) * fan_in**0.5)
    return weight, styles / styles.abs().amax(1, keepdim=True)
