"""StyleGAN2's modulated convolution (arXiv 1912.04958, eq. 1-3) as scale, convolve, demodulate.

Scaling the input by the style and the output by d = rsqrt(sum (w s)^2 + eps) equals convolving each sample with its
own modulated weights, and d of all samples is one matrix product: sum_i s_i^2 sum_k w_oik^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils.ops.conv2d_resample import conv2d_resample


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Convolves x with weights scaled by a style per sample and input channel.

    Args:
        x: [N,I,H,W].
        weight: [O,I,k,k].
        styles: [N,I].
        noise: added after demodulation; broadcasts to the output, or None.
        up: factor of upsampling by resample_filter.
        padding: of the upsampled image, besides the filter's.
        demodulate: scale output channels to unit expected variance.
        flip_weight: True: correlation, False: convolution.

    Returns:
        [N,O,H*up,W*up] for padding k // 2, in x's type.
    """
    if x.dtype == torch.float16 and demodulate:
        # Keeps products in float16's range; demodulation cancels both factors.
        fan_in = weight[0].numel()
        weight = weight / (fan_in**0.5 * weight.abs().amax(dim=[1, 2, 3], keepdim=True))
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    x = x * styles.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight.to(x.dtype), resample_filter, up=up, padding=padding, flip_weight=flip_weight)
    if demodulate:
        energy = styles.square() @ weight.square().sum(dim=[2, 3]).t()
        x = x * (energy + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    return x if noise is None else x + noise.to(x.dtype)
