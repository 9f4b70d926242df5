"""Resampling of images with FIR filters (Karras et al. 2020, arXiv 1912.04958, appendix B).

upfirdn2d inserts up-1 zeros after every pixel, pads with zeros (crops if negative), filters each channel and keeps
every down-th pixel:

    y[n,c,i] = sum_j  f[j] * xpad[n,c,i*down + size(f)-1 - j],   xpad = pad(insert_zeros(x, up))

The operator `stylegan_di::upfirdn2d` is linear. Its gradient is upfirdn2d with up and down exchanged and the filter
flipped. Filters are constants: no gradient flows to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SEPARABLE_TAPS = 8  # a filter of this many taps or more is applied along each axis in turn


def setup_filter(
    f: Tensor | Sequence[Any] | float | None,
    *,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Makes the filter tensor float32 [fh,fw], or [taps] for a separable filter, from its taps.

    Args:
        f: taps, 1-D or 2-D; a number; None for the identity.
        normalize: whether to make the taps sum to 1.
        flip_filter: whether to reverse them.
        gain: gain of the whole filter, over both axes.
        separable: whether 1-D taps stay 1-D; by default they do if there are 8 or more.

    Raises:
        ValueError: for an empty filter, or one of more than two dimensions.
    """
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"a filter of shape {list(f.shape)}; accepted: 1-D or 2-D, not empty")
    f = f.reshape(1) if f.ndim == 0 else f
    keep_1d = len(f) >= SEPARABLE_TAPS if separable is None else separable
    if f.ndim == 1 and not keep_1d:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Upsamples, pads, filters and downsamples each channel of x [N,C,H,W] to [N,C,H',W'], in x's dtype and layout.

    Args:
        f: [fh,fw] or separable [taps], of any floating type; None for the identity. See `setup_filter`.
        up, down: integer factors >= 1, one or [x, y].
        padding: pixels of the upsampled image, one number, [x, y] or [x0, x1, y0, y1]; negative numbers crop.
        flip_filter: False convolves, True correlates.
        gain: factor on the result.

    Raises:
        ValueError: for factors or padding in another form, or an image smaller than the filter.
    """
    up, down, padding = parse_factors(up), parse_factors(down), parse_padding(padding)
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    width, height = _output_size(x, f, up, down, padding)
    if width < 1 or height < 1:
        raise ValueError(f"an image {list(x.shape)} is too small: filter {list(f.shape)}, {up=}, {down=}, {padding=}")
    return torch.ops.stylegan_di.upfirdn2d(x, f.to(x.device), up, down, padding, flip_filter, gain)


def filter2d(
    x: Tensor, f: Tensor | None, padding: int | Sequence[int] = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filters x [N,C,H,W] and keeps its size, apart from the `padding` added; see `upfirdn2d`."""
    fw, fh = filter_size(f)
    px0, px1, py0, py1 = parse_padding(padding)
    pads = [px0 + fw // 2, px1 + (fw - 1) // 2, py0 + fh // 2, py1 + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Enlarges x [N,C,H,W] by integer factors and keeps its mean; `padding` is of the result; see `upfirdn2d`."""
    upx, upy = parse_factors(up)
    pads = add_padding(parse_padding(padding), upsample_padding(f, [upx, upy]))
    return upfirdn2d(x, f, up=[upx, upy], padding=pads, flip_filter=flip_filter, gain=gain * upx * upy)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Reduces x [N,C,H,W] by integer factors; `padding` is of x; see `upfirdn2d`."""
    factors = parse_factors(down)
    pads = add_padding(parse_padding(padding), downsample_padding(f, factors))
    return upfirdn2d(x, f, down=factors, padding=pads, flip_filter=flip_filter, gain=gain)


# Sizes and paddings, x before y.


def parse_factors(factors: int | Sequence[int]) -> list[int]:
    """Returns one factor or [x, y] as [x, y]."""
    x, y = (factors, factors) if isinstance(factors, int) else factors
    if x < 1 or y < 1:
        raise ValueError(f"a resampling factor of {[x, y]}; accepted: 1 or more")
    return [x, y]


def parse_padding(padding: int | Sequence[int]) -> list[int]:
    """Returns one number, [x, y] or [x0, x1, y0, y1] as [x0, x1, y0, y1]."""
    if isinstance(padding, int):
        return [padding] * 4
    if len(padding) == 2:
        return [padding[0], padding[0], padding[1], padding[1]]
    if len(padding) == 4:
        return list(padding)
    raise ValueError(f"{padding=}; accepted: one number, [x, y] or [x0, x1, y0, y1]")


def add_padding(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The sum of two paddings [x0, x1, y0, y1]."""
    return [p + q for p, q in zip(a, b, strict=True)]


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Width and height of a filter; None is the identity."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def upsample_padding(f: Tensor | None, up: Sequence[int]) -> list[int]:
    """The padding that centres the filter and makes the result exactly `up` times the size."""
    pads = []
    for size, factor in zip(filter_size(f), up, strict=True):
        pads += [(size + factor - 1) // 2, (size - factor) // 2]
    return pads


def downsample_padding(f: Tensor | None, down: Sequence[int]) -> list[int]:
    """The padding that centres the filter and makes the result `down` times smaller."""
    pads = []
    for size, factor in zip(filter_size(f), down, strict=True):
        pads += [(size - factor + 1) // 2, (size - factor) // 2]
    return pads


def _output_size(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    (fw, fh), (px0, px1, py0, py1) = filter_size(f), padding
    width = (x.shape[3] * up[0] + px0 + px1 - fw) // down[0] + 1
    height = (x.shape[2] * up[1] + py0 + py1 - fh) // down[1] + 1
    return width, height


# The operator.


@torch.library.custom_op(
    "stylegan_di::upfirdn2d",
    mutates_args=(),
    schema="(Tensor x, Tensor f, SymInt[] up, SymInt[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor",
)
def _upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    f = f.to(x.dtype) * gain ** (f.ndim / 2)
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))  # the code below correlates
    memory_format = layout(x)
    (upx, upy), (downx, downy), (px0, px1, py0, py1) = up, down, padding
    if f.ndim == 1:
        x = _correlate(x, f[:, None], [1, upy], [1, downy], [0, 0, py0, py1])
        y = _correlate(x, f[None, :], [upx, 1], [downx, 1], [px0, px1, 0, 0])
    else:
        y = _correlate(x, f, up, down, padding)
    return y.contiguous(memory_format=memory_format)


@_upfirdn2d.register_fake
def _upfirdn2d_fake(
    x: Tensor,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    width, height = _output_size(x, f, up, down, padding)
    y = x.new_empty([x.shape[0], x.shape[1], height, width])
    return y.contiguous(memory_format=layout(x))


def layout(x: Tensor) -> torch.memory_format:
    """Returns channels_last for an image that is stored so and not also contiguous, else contiguous_format."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _correlate(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Does upfirdn2d by correlation with a 2-D filter, as depthwise convolutions that skip the zeros between pixels."""
    channels = x.shape[1]
    if list(up) == [1, 1]:
        weight = f.expand(channels, 1, -1, -1)
        px0, px1, py0, py1 = padding
        if px0 != px1 or py0 != py1 or px0 < 0 or py0 < 0:
            x, px0, py0 = F.pad(x, list(padding)), 0, 0
        return F.conv2d(x, weight, stride=(down[1], down[0]), padding=(py0, px0), groups=channels)
    # A transposed convolution equals padding by [size-1, size-up] and then convolving.
    fh, fw = f.shape
    px0, px1, py0, py1 = add_padding(padding, [1 - fw, up[0] - fw, 1 - fh, up[1] - fh])
    crop_x, crop_y = max(min(-px0, -px1), 0), max(min(-py0, -py1), 0)
    weight = f.flip([0, 1]).expand(channels, 1, -1, -1)
    y = F.conv_transpose2d(x, weight, stride=(up[1], up[0]), padding=(crop_y, crop_x), groups=channels)
    rest = [px0 + crop_x, px1 + crop_x, py0 + crop_y, py1 + crop_y]
    if any(rest):
        y = F.pad(y, rest)
    return y[:, :, :: down[1], :: down[0]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain = inputs
    ctx.size = x.shape[3], x.shape[2]
    ctx.save_for_backward(f)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    padding = []
    for axis, (size, taps) in enumerate(zip(ctx.size, filter_size(f), strict=True)):
        up, down, before = ctx.up[axis], ctx.down[axis], ctx.padding[2 * axis]
        padding += [taps - 1 - before, (size - 1) * up + 1 - dy.shape[3 - axis] * down + before]
    dx = torch.ops.stylegan_di.upfirdn2d(dy, f, ctx.down, ctx.up, padding, not ctx.flip_filter, ctx.gain)
    return dx, None, None, None, None, None, None


_upfirdn2d.register_autograd(_backward, setup_context=_setup_context)
