"""Upsample, FIR-filter and downsample images, as one op whose gradient is the same op.

With f the filter and all steps per channel: insert up - 1 zeros after each pixel; pad with zeros (negative: crop);
convolve with f, keeping valid pixels; keep every down-th pixel. By linearity the gradient is the transposed chain:
up and down swap, the filter flips, the padding follows from the sizes; so gradients of every order are this op.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Size = int | Sequence[int]


def setup_filter(
    f: Tensor | np.ndarray | Sequence[float] | float | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A filter for the functions below: float32 [h,w], or [taps] if separable (by default from 8 taps on).

    Args:
        f: taps, 0-D, 1-D or 2-D; None: the identity.
        normalize: divide by the sum.
        flip_filter: reverse every dimension.
        gain: gain of the whole filter; a separable one carries its square root.
        separable: keep a 1-D filter 1-D, to be applied along each axis.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if taps.ndim == 0:
        taps = taps[None]
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"a filter has 1 or 2 dimensions and at least one tap, not the shape {tuple(taps.shape)}")
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    return taps * gain ** (taps.ndim / 2)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Size = 1,
    down: Size = 1,
    padding: Size = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Upsamples, pads, filters and downsamples x [N,C,H,W]; see the module.

    Args:
        x: images, any float type.
        f: float32 filter [h,w] or [taps] (separable) from `setup_filter`; None: the identity.
        up: factor, or [x, y].
        down: factor, or [x, y].
        padding: pixels around the upsampled image; int, [x, y] or [x0, x1, y0, y1]; negative crops.
        flip_filter: True: correlation, False: convolution.
        gain: gain of the result.
    """
    upx, upy = _pair(up)
    downx, downy = _pair(down)
    padx0, padx1, pady0, pady1 = parse_padding(padding)
    if f is None:
        f = x.new_ones([1, 1], dtype=torch.float32)
    if f.ndim == 2:
        return _upfirdn2d(x, f, upx, upy, downx, downy, padx0, padx1, pady0, pady1, flip_filter, float(gain))
    root = float(gain) ** 0.5
    y = _upfirdn2d(x, f[None, :], upx, 1, downx, 1, padx0, padx1, 0, 0, flip_filter, root)
    return _upfirdn2d(y, f[:, None], 1, upy, 1, downy, 0, 0, pady0, pady1, flip_filter, root)


def filter2d(x: Tensor, f: Tensor | None, padding: Size = 0, flip_filter: bool = False, gain: float = 1) -> Tensor:
    """Filters x [N,C,H,W] to the same size, plus the user's padding."""
    fw, fh = filter_size(f)
    px0, px1, py0, py1 = parse_padding(padding)
    around = [px0 + fw // 2, px1 + (fw - 1) // 2, py0 + fh // 2, py1 + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=around, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor, f: Tensor | None, up: Size = 2, padding: Size = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Upsamples x [N,C,H,W] by `up`, keeping its brightness, plus the user's padding."""
    upx, upy = _pair(up)
    around = [p + q for p, q in zip(parse_padding(padding), upsample_padding(f, upx, upy), strict=True)]
    return upfirdn2d(x, f, up=up, padding=around, flip_filter=flip_filter, gain=gain * upx * upy)


def downsample2d(
    x: Tensor, f: Tensor | None, down: Size = 2, padding: Size = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Downsamples x [N,C,H,W] by `down`, plus the user's padding."""
    downx, downy = _pair(down)
    around = [p + q for p, q in zip(parse_padding(padding), downsample_padding(f, downx, downy), strict=True)]
    return upfirdn2d(x, f, down=down, padding=around, flip_filter=flip_filter, gain=gain)


def upsample_padding(f: Tensor | None, upx: int, upy: int) -> tuple[int, int, int, int]:
    """Padding that makes upsampling by f exactly `up` times as large."""
    fw, fh = filter_size(f)
    return (fw + upx - 1) // 2, (fw - upx) // 2, (fh + upy - 1) // 2, (fh - upy) // 2


def downsample_padding(f: Tensor | None, downx: int, downy: int) -> tuple[int, int, int, int]:
    """Padding that makes downsampling by f exactly `down` times as small."""
    fw, fh = filter_size(f)
    return (fw - downx + 1) // 2, (fw - downx) // 2, (fh - downy + 1) // 2, (fh - downy) // 2


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Width and height of a filter."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def parse_padding(padding: Size) -> tuple[int, int, int, int]:
    """int, [x, y] or [x0, x1, y0, y1] -> (x0, x1, y0, y1)."""
    values = [padding] * 4 if isinstance(padding, int) else list(padding)
    if len(values) == 2:
        values = [values[0], values[0], values[1], values[1]]
    x0, x1, y0, y1 = map(int, values)
    return x0, x1, y0, y1


def _pair(factor: Size) -> tuple[int, int]:
    x, y = (factor, factor) if isinstance(factor, int) else factor
    return int(x), int(y)


@torch.library.custom_op("stylegan_di::upfirdn2d", mutates_args=())
def _upfirdn2d(
    x: Tensor, f: Tensor, upx: int, upy: int, downx: int, downy: int,
    padx0: int, padx1: int, pady0: int, pady1: int, flip_filter: bool, gain: float,
) -> Tensor:  # fmt: skip
    """The reference; upsampling is a transposed convolution, so no zeros are multiplied."""
    channels = x.shape[1]
    fh, fw = f.shape
    weight = (f * gain).to(x.dtype)
    if upx == upy == 1:
        kernel = weight if flip_filter else weight.flip([0, 1])
        x = F.pad(x, [padx0, padx1, pady0, pady1])
        return F.conv2d(x, kernel.expand(channels, 1, fh, fw), stride=(downy, downx), groups=channels)
    kernel = weight.flip([0, 1]) if flip_filter else weight
    out_h = x.shape[2] * upy + pady0 + pady1 - fh + 1
    out_w = x.shape[3] * upx + padx0 + padx1 - fw + 1
    full = F.conv_transpose2d(x, kernel.expand(channels, 1, fh, fw), stride=(upy, upx), groups=channels)
    # The valid convolution of the padded image is a window of the full one.
    top, left = fh - 1 - pady0, fw - 1 - padx0
    window = F.pad(full, [-left, out_w + left - full.shape[3], -top, out_h + top - full.shape[2]])
    return window[:, :, ::downy, ::downx].contiguous()


@_upfirdn2d.register_fake
def _(
    x: Tensor, f: Tensor, upx: int, upy: int, downx: int, downy: int,
    padx0: int, padx1: int, pady0: int, pady1: int, flip_filter: bool, gain: float,
) -> Tensor:  # fmt: skip
    height = (x.shape[2] * upy + pady0 + pady1 - f.shape[0]) // downy + 1
    width = (x.shape[3] * upx + padx0 + padx1 - f.shape[1]) // downx + 1
    return x.new_empty([x.shape[0], x.shape[1], height, width])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, f, *ctx.options = inputs
    ctx.save_for_backward(f)
    ctx.size_in, ctx.size_out = x.shape, output.shape


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    (f,) = ctx.saved_tensors
    upx, upy, downx, downy, padx0, _, pady0, _, flip_filter, gain = ctx.options
    fh, fw = f.shape
    padx1 = ctx.size_in[3] * upx - ctx.size_out[3] * downx + padx0 - upx + 1
    pady1 = ctx.size_in[2] * upy - ctx.size_out[2] * downy + pady0 - upy + 1
    grad_x = _upfirdn2d(
        grad, f, downx, downy, upx, upy, fw - padx0 - 1, padx1, fh - pady0 - 1, pady1, not flip_filter, gain
    )
    return grad_x, *[None] * 11


_upfirdn2d.register_autograd(_backward, setup_context=_setup_context)
