"""Convolution with filtered up- or downsampling (Karras et al. 2020, arXiv 1912.04958, appendix B).

It is defined as: upsample with the filter, convolve, filter and downsample. All steps are linear and shift-equivariant,
so they run in the cheapest order, which gives the same result up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from stylegan_di.torch_utils.ops.upfirdn2d import (
    add_padding,
    downsample_padding,
    parse_padding,
    upfirdn2d,
    upsample_padding,
)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Convolves x [N,Cin,H,W] with w [Cout,Cin/groups,kh,kw], of x's dtype, and resamples.

    Args:
        f: resampling filter, see `setup_filter`; None for the identity.
        up, down: integer factors >= 1.
        padding: padding of the upsampled image, one number, [x, y] or [x0, x1, y0, y1].
        flip_weight: True correlates, as torch's conv2d does; False convolves.
        flip_filter: as in `upfirdn2d`.

    Returns [N,Cout,H',W'].
    """
    kh, kw = w.shape[2:]
    pads = parse_padding(padding)
    if up > 1:
        pads = add_padding(pads, upsample_padding(f, [up, up]))
    if down > 1:
        pads = add_padding(pads, downsample_padding(f, [down, down]))
    if up == down == 1:
        return _conv2d(x, w, 1, pads, groups, flip_weight)
    if up == 1:
        if kh == kw == 1:
            x = upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter)
            return _conv2d(x, w, 1, [0, 0, 0, 0], groups, flip_weight)
        x = upfirdn2d(x, f, padding=pads, flip_filter=flip_filter)
        return _conv2d(x, w, down, [0, 0, 0, 0], groups, flip_weight)
    if kh == kw == 1:
        x = _conv2d(x, w, 1, [0, 0, 0, 0], groups, flip_weight)
        x = upfirdn2d(x, f, up=up, padding=pads, gain=up**2, flip_filter=flip_filter)
    else:
        x, pads = upsampling_conv(x, w, up, pads, groups, flip_weight)
        x = upfirdn2d(x, f, padding=pads, gain=up**2, flip_filter=flip_filter)
    return x if down == 1 else upfirdn2d(x, f, down=down, flip_filter=flip_filter)


def upsampling_conv(
    x: Tensor, w: Tensor, up: int, padding: Sequence[int], groups: int = 1, flip_weight: bool = True
) -> tuple[Tensor, list[int]]:
    """Inserts zeros into x and convolves; returns the result and the padding for the filter that must follow.

    A transposed convolution equals padding by [size-1, size-up] and then convolving.
    """
    kh, kw = w.shape[2:]
    x = _conv_transpose2d(x, w, up, groups, flip_weight)
    return x, add_padding(padding, [1 - kw, up - kw, 1 - kh, up - kh])


def _conv2d(x: Tensor, w: Tensor, stride: int, padding: Sequence[int], groups: int, flip_weight: bool) -> Tensor:
    w = w if flip_weight or w.shape[2:] == (1, 1) else w.flip([2, 3])
    px0, px1, py0, py1 = padding
    if px0 != px1 or py0 != py1 or px0 < 0 or py0 < 0:
        x, px0, py0 = F.pad(x, list(padding)), 0, 0
    return F.conv2d(x, w, stride=stride, padding=(py0, px0), groups=groups)


def _conv_transpose2d(x: Tensor, w: Tensor, stride: int, groups: int, flip_weight: bool) -> Tensor:
    w = w.flip([2, 3]) if flip_weight else w
    cout, cin, kh, kw = w.shape
    if groups == 1:
        w = w.transpose(0, 1)
    else:
        w = w.reshape(groups, cout // groups, cin, kh, kw).transpose(1, 2)
        w = w.reshape(groups * cin, cout // groups, kh, kw)
    return F.conv_transpose2d(x, w, stride=stride, groups=groups)
