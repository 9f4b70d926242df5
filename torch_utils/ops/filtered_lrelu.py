"""Leaky ReLU at a higher resolution: y = down(clamp(lrelu(up(x + b); slope) * gain)), filtered before and after.

It ends StyleGAN3's layers (Karras et al. 2021, arXiv 2106.12423, section 3.2): the nonlinearity makes frequencies above
the sampling rate, which the second filter removes before they alias. With m the slope of the nonlinearity at
u = up(x + b), 0 where it is clamped, the operators are `stylegan_di::filtered_lrelu` and its linear parts

    filtered_lrelu_tangent   down(m * up(v))
    filtered_lrelu_grad      up^T(m * down^T(dy))

which are each other's transposes, so that gradients of any order are available. They compute u again, and nothing of
the higher resolution is kept between forward and backward pass. Filters are constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.torch_utils.ops.bias_act import representable
from stylegan_di.torch_utils.ops.upfirdn2d import filter_size, layout, parse_padding


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Adds bias, upsamples, activates, clamps and downsamples x [N,C,H,W] to [N,C,H',W'], in x's dtype and layout.

    Args:
        fu, fd: filters before and after, [fh,fw] or separable [taps]; None for the identity.
        b: bias [C], of x's dtype, added before the padding.
        up, down: integer factors >= 1; upsampling keeps the mean.
        padding: pixels of the upsampled image, one number, [x, y] or [x0, x1, y0, y1]; negative numbers crop.
        gain: > 0; slope: of the activation below 0; clamp: limit on its absolute value, >= 0, None for no limit.
        flip_filter: False convolves, True correlates.

    Raises:
        ValueError: for arguments out of range, a bias that does not fit, or an image smaller than the filters.
    """
    if up < 1 or down < 1 or gain <= 0 or (clamp is not None and clamp < 0):
        raise ValueError(f"{up=}, {down=}, {gain=}, {clamp=}; accepted: factors from 1, gain > 0, clamp >= 0 or None")
    if b is not None and b.shape != x.shape[1:2]:
        raise ValueError(f"a bias of shape {list(b.shape)} for {list(x.shape)}")
    pads = parse_padding(padding)
    sizes = [*_upsampled_size(x, fu, up, pads), *_output_size(x, fu, fd, up, down, pads)]
    if min(sizes) < 1:
        filters = f"filters {list(filter_size(fu))} and {list(filter_size(fd))}"
        raise ValueError(f"an image {list(x.shape)} is too small: {filters}, {up=}, {down=}, {padding=}")
    fu, fd = (None if f is None else f.to(x.device) for f in (fu, fd))
    options = float(gain), float(slope), representable(clamp, x.dtype), flip_filter
    return torch.ops.stylegan_di.filtered_lrelu(x, fu, fd, b, up, down, pads, *options)


def _upsampled_size(x: Tensor, fu: Tensor | None, up: int, padding: Sequence[int]) -> list[int]:
    """Height and width between the filters."""
    (fw, fh), (px0, px1, py0, py1) = filter_size(fu), padding
    return [x.shape[2] * up + py0 + py1 - fh + 1, x.shape[3] * up + px0 + px1 - fw + 1]


def _output_size(
    x: Tensor, fu: Tensor | None, fd: Tensor | None, up: int, down: int, padding: Sequence[int]
) -> list[int]:
    fw, fh = filter_size(fd)
    height, width = _upsampled_size(x, fu, up, padding)
    return [(height - fh) // down + 1, (width - fw) // down + 1]


# The two filters and their transposes.


def _resample(
    x: Tensor, f: Tensor | None, up: int, down: int, padding: Sequence[int], flip_filter: bool, gain: float
) -> Tensor:
    f = torch.ones([1, 1], device=x.device) if f is None else f
    return torch.ops.stylegan_di.upfirdn2d(x, f, [up] * 2, [down] * 2, list(padding), flip_filter, gain)


def _transposed(
    dy: Tensor,
    size: Sequence[int],
    f: Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> Tensor:
    """The transpose of `_resample` for images of a size [height, width]."""
    pads = []
    for axis, taps in enumerate(filter_size(f)):
        before, length = padding[2 * axis], size[1 - axis]
        pads += [taps - 1 - before, (length - 1) * up + 1 - dy.shape[3 - axis] * down + before]
    return _resample(dy, f, down, up, pads, not flip, gain)


_NO_PADDING = [0, 0, 0, 0]


# The operators.

_ARGUMENTS = (
    "Tensor? fu, Tensor? fd, Tensor? b, SymInt up, SymInt down, SymInt[] padding, float gain, float slope, "
    "float? clamp, bool flip_filter) -> Tensor"
)
_Options = tuple[int, int, Sequence[int], float, float, float | None, bool]  # up to flip_filter


def _activated(x: Tensor, fu: Tensor | None, b: Tensor | None, options: _Options) -> Tensor:
    """clamp(lrelu(up(x + b)) * gain), which also tells the slope at each pixel."""
    up, _, padding, gain, slope, clamp, flip_filter = options
    x = x if b is None else x + b[:, None, None]
    u = _resample(x, fu, up, 1, padding, flip_filter, up**2)
    return torch.ops.stylegan_di.bias_act(u, None, 1, "lrelu", slope, gain, clamp)


def _through(t: Tensor, activated: Tensor, options: _Options) -> Tensor:
    """t times the slope at each pixel."""
    _, _, _, gain, slope, clamp, _ = options
    return torch.ops.stylegan_di.bias_act_grad(t, activated, None, 1, "lrelu", slope, gain, clamp)


@torch.library.custom_op("stylegan_di::filtered_lrelu", mutates_args=(), schema=f"(Tensor x, {_ARGUMENTS}")
def _filtered_lrelu(
    x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int, padding: Sequence[int],
    gain: float, slope: float, clamp: float | None, flip_filter: bool,
) -> Tensor:  # fmt: skip
    y = _activated(x, fu, b, (up, down, padding, gain, slope, clamp, flip_filter))
    return _resample(y, fd, 1, down, _NO_PADDING, flip_filter, 1)


@_filtered_lrelu.register_fake
def _filtered_lrelu_fake(
    x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int, padding: Sequence[int],
    *rest: Any,
) -> Tensor:  # fmt: skip
    size = _output_size(x, fu, fd, up, down, padding)
    return x.new_empty([*x.shape[:2], *size]).contiguous(memory_format=layout(x))


@torch.library.custom_op(
    "stylegan_di::filtered_lrelu_tangent", mutates_args=(), schema=f"(Tensor v, Tensor x, {_ARGUMENTS}"
)
def _filtered_lrelu_tangent(
    v: Tensor, x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int,
    padding: Sequence[int], gain: float, slope: float, clamp: float | None, flip_filter: bool,
) -> Tensor:  # fmt: skip
    options = up, down, padding, gain, slope, clamp, flip_filter
    t = _resample(v, fu, up, 1, padding, flip_filter, up**2)
    y = _resample(_through(t, _activated(x, fu, b, options), options), fd, 1, down, _NO_PADDING, flip_filter, 1)
    return y.contiguous(memory_format=layout(x))


@_filtered_lrelu_tangent.register_fake
def _filtered_lrelu_tangent_fake(v: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return _filtered_lrelu_fake(x, *rest)


@torch.library.custom_op(
    "stylegan_di::filtered_lrelu_grad", mutates_args=(), schema=f"(Tensor dy, Tensor x, {_ARGUMENTS}"
)
def _filtered_lrelu_grad(
    dy: Tensor, x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, up: int, down: int,
    padding: Sequence[int], gain: float, slope: float, clamp: float | None, flip_filter: bool,
) -> Tensor:  # fmt: skip
    options = up, down, padding, gain, slope, clamp, flip_filter
    size = _upsampled_size(x, fu, up, padding)
    t = _transposed(dy, size, fd, 1, down, _NO_PADDING, flip_filter, 1)
    t = _through(t, _activated(x, fu, b, options), options)
    dx = _transposed(t, x.shape[2:], fu, up, 1, padding, flip_filter, up**2)
    return dx.contiguous(memory_format=layout(x))


@_filtered_lrelu_grad.register_fake
def _filtered_lrelu_grad_fake(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape).contiguous(memory_format=layout(x))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, fu, fd, b, *ctx.options = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, fu, fd, b = ctx.saved_tensors
    dx = torch.ops.stylegan_di.filtered_lrelu_grad(dy, x, fu, fd, b, *ctx.options)
    db = dx.sum([0, 2, 3]) if ctx.needs_input_grad[3] else None
    return dx, None, None, db, *[None] * 7


def _setup_linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, fu, fd, b, *ctx.options = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _tangent_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The slopes are piecewise constant, so that x and b get no gradients."""
    dv = torch.ops.stylegan_di.filtered_lrelu_grad(dy, *ctx.saved_tensors, *ctx.options)
    return dv, *[None] * 11


def _grad_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    ddy = torch.ops.stylegan_di.filtered_lrelu_tangent(ddx, *ctx.saved_tensors, *ctx.options)
    return ddy, *[None] * 11


_filtered_lrelu.register_autograd(_backward, setup_context=_setup_context)
_filtered_lrelu_tangent.register_autograd(_tangent_backward, setup_context=_setup_linear_context)
_filtered_lrelu_grad.register_autograd(_grad_backward, setup_context=_setup_linear_context)
