"""Convolution with FIR resampling, in the order that computes least.

Upsampling and FIR, convolution, FIR and downsampling are linear and shift-invariant, so they commute: a strided or
transposed convolution does the resampling where it can, and a 1x1 convolution works at the lower resolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops.upfirdn2d import Size, downsample_padding, parse_padding, upfirdn2d, upsample_padding


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Size = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Equals: upfirdn2d(x, f, up, gain=up^2) if up > 1; convolution with w; upfirdn2d(f, down) if down > 1.

    Args:
        x: [N,C,H,W].
        w: [O,C/groups,kh,kw], of x's type.
        f: float32 filter of `setup_filter`, or None.
        padding: with respect to the upsampled image, besides what the filters need; int, [x, y] or [x0, x1, y0, y1].
        flip_weight: True: correlation, as torch's convolutions; False: convolution.
        flip_filter: the same for f, with the meaning of `upfirdn2d`.
    """
    kh, kw = w.shape[2:]
    px0, px1, py0, py1 = parse_padding(padding)
    if up > 1:
        px0, px1, py0, py1 = _add((px0, px1, py0, py1), upsample_padding(f, up, up))
    if down > 1:
        px0, px1, py0, py1 = _add((px0, px1, py0, py1), downsample_padding(f, down, down))
    around = [px0, px1, py0, py1]
    pointwise = kh == kw == 1

    if pointwise and down > 1 and up == 1:
        x = upfirdn2d(x, f, down=down, padding=around, flip_filter=flip_filter)
        return _convolve(x, w, groups, flip_weight)
    if pointwise and up > 1 and down == 1:
        x = _convolve(x, w, groups, flip_weight)
        return upfirdn2d(x, f, up=up, padding=around, gain=up**2, flip_filter=flip_filter)
    if down > 1 and up == 1:
        x = upfirdn2d(x, f, padding=around, flip_filter=flip_filter)
        return _convolve(x, w, groups, flip_weight, stride=down)
    if up > 1:
        x = _convolve_transposed(x, w, groups, flip_weight, up)
        around = [px0 - kw + 1, px1 + up - kw, py0 - kh + 1, py1 + up - kh]
        x = upfirdn2d(x, f, padding=around, gain=up**2, flip_filter=flip_filter)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if px0 == px1 >= 0 and py0 == py1 >= 0:
        return _convolve(x, w, groups, flip_weight, padding=(py0, px0))
    return _convolve(F.pad(x, around), w, groups, flip_weight)


def _add(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2], first[3] + second[3]


def _convolve(
    x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    if not flip_weight and w.shape[2:] != (1, 1):
        w = w.flip([2, 3])
    return F.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _convolve_transposed(x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int) -> Tensor:
    """The full convolution of the zero-stuffed image; torch's transposed convolution does not flip."""
    out_channels, in_per_group, kh, kw = w.shape
    if flip_weight:
        w = w.flip([2, 3])
    w = w.reshape(groups, out_channels // groups, in_per_group, kh, kw).transpose(1, 2)
    w = w.reshape(groups * in_per_group, out_channels // groups, kh, kw)
    return F.conv_transpose2d(x, w, stride=stride, groups=groups)
