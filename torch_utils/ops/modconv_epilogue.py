"""The steps after a modulated convolution in one operator: y = clamp(act(fir(x) * scale + noise + b; alpha) * gain).

x is the convolution's result, fir the filter that ends an upsampling, scale the demodulation, b the bias (Karras et al.
2020, arXiv 1912.04958, section 2.2 and appendix B). The operators are `stylegan_di::modconv_epilogue` and its gradient
`stylegan_di::modconv_epilogue_grad`. With t = dy * gain * act' * [|y| < clamp] and g = fir^T(t),

    dx = g * scale,   dscale = sum_hw x * g,   dnoise = sum_c t,   db = sum_nhw t,

so that only x and y are kept. It supports the activations whose slope follows from the sign of y: linear, relu, lrelu.
Gradients of any order are available.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.torch_utils.ops.bias_act import ACTIVATIONS, representable
from stylegan_di.torch_utils.ops.upfirdn2d import filter_size, layout

FUSED_ACTIVATIONS = ("linear", "relu", "lrelu")


def modconv_epilogue(
    x: Tensor,
    f: Tensor | None = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    filter_gain: float = 1,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Returns clamp(act(fir(x) * scale + noise + b) * gain), [N,C,H',W'], with x's dtype and layout.

    Args:
        x: [N,C,H,W].
        f: filter [fh,fw], convolved with x padded by `padding` [x0, x1, y0, y1], times filter_gain; None for none.
        scale: [N,C], of x's dtype.
        noise: [N,1,H',W'] or [1,1,H',W'], of x's dtype.
        b: [C], of x's dtype.
        act: one of FUSED_ACTIVATIONS; alpha, gain, clamp: as in `bias_act`.
    """
    if act not in FUSED_ACTIVATIONS:
        raise ValueError(f"{act=}; accepted: {', '.join(FUSED_ACTIVATIONS)}")
    if f is not None and f.ndim != 2:
        raise ValueError(f"a filter of shape {list(f.shape)}; accepted: [fh,fw]")
    alpha = ACTIVATIONS[act].default_alpha if alpha is None else float(alpha)
    gain = ACTIVATIONS[act].default_gain if gain is None else float(gain)
    f = None if f is None else f.to(x.device)
    return torch.ops.stylegan_di.modconv_epilogue(
        x, f, list(padding), filter_gain, scale, noise, b, act, alpha, gain, representable(clamp, x.dtype)
    )


def _output_size(x: Tensor, f: Tensor | None, padding: Sequence[int]) -> tuple[int, int]:
    """Returns the result's height and width."""
    (fw, fh), (px0, px1, py0, py1) = filter_size(f), padding
    return x.shape[2] + py0 + py1 - fh + 1, x.shape[3] + px0 + px1 - fw + 1


def _filter(x: Tensor, f: Tensor | None, padding: Sequence[int], gain: float) -> Tensor:
    if f is None:
        return x
    return torch.ops.stylegan_di.upfirdn2d(x, f, [1, 1], [1, 1], list(padding), False, gain)


def _filter_transposed(t: Tensor, f: Tensor | None, padding: Sequence[int], gain: float) -> Tensor:
    if f is None:
        return t
    (fw, fh), (px0, px1, py0, py1) = filter_size(f), padding
    pads = [fw - 1 - px0, fw - 1 - px1, fh - 1 - py0, fh - 1 - py1]
    return torch.ops.stylegan_di.upfirdn2d(t, f, [1, 1], [1, 1], pads, True, gain)


def _over_pixels(values: Tensor) -> Tensor:
    """Reshapes [N,C] to broadcast over pixels."""
    return values[:, :, None, None]


# The operators.

_OPTIONS = "str act, float alpha, float gain, float? clamp"
_FILTER = "Tensor? f, SymInt[] padding, float filter_gain"


@torch.library.custom_op(
    "stylegan_di::modconv_epilogue",
    mutates_args=(),
    schema=f"(Tensor x, {_FILTER}, Tensor? scale, Tensor? noise, Tensor? b, {_OPTIONS}) -> Tensor",
)
def _modconv_epilogue(
    x: Tensor,
    f: Tensor | None,
    padding: Sequence[int],
    filter_gain: float,
    scale: Tensor | None,
    noise: Tensor | None,
    b: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    u = _filter(x, f, padding, filter_gain)
    if scale is not None:
        u = u * _over_pixels(scale)
    if noise is not None:
        u = u + noise
    return torch.ops.stylegan_di.bias_act(u, b, 1, act, alpha, gain, clamp)


@_modconv_epilogue.register_fake
def _modconv_epilogue_fake(
    x: Tensor, f: Tensor | None, padding: Sequence[int], filter_gain: float, *rest: Any
) -> Tensor:
    y = x.new_empty([x.shape[0], x.shape[1], *_output_size(x, f, padding)])
    return y.contiguous(memory_format=layout(x))


@torch.library.custom_op(
    "stylegan_di::modconv_epilogue_grad",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor y, Tensor x, {_FILTER}, Tensor? scale, {_OPTIONS}) "
    "-> (Tensor dx, Tensor dscale, Tensor dnoise, Tensor db)",
)
def _modconv_epilogue_grad(
    dy: Tensor,
    y: Tensor,
    x: Tensor,
    f: Tensor | None,
    padding: Sequence[int],
    filter_gain: float,
    scale: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dx, and every sample's gradients of scale [N,C], noise [N,1,H',W'] and b [N,C]."""
    t = torch.ops.stylegan_di.bias_act_grad(dy, y, None, 1, act, alpha, gain, clamp)
    g = _filter_transposed(t, f, padding, filter_gain)
    dx = g.clone() if scale is None else g * _over_pixels(scale)
    dx = dx.contiguous(memory_format=layout(x))
    return dx, (x * g).sum([2, 3]), t.sum(1, keepdim=True).contiguous(), t.sum([2, 3])


@_modconv_epilogue_grad.register_fake
def _modconv_epilogue_grad_fake(dy: Tensor, y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels = x.shape[:2]
    dx = x.new_empty(x.shape).contiguous(memory_format=layout(x))
    dnoise = x.new_empty([batch, 1, *y.shape[2:]])
    return dx, x.new_empty([batch, channels]), dnoise, x.new_empty([batch, channels])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, ctx.padding, ctx.filter_gain, scale, noise, _, *ctx.options = inputs
    ctx.one_noise = noise is not None and noise.shape[0] == 1
    ctx.save_for_backward(x, output, f, scale)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, y, f, scale = ctx.saved_tensors
    dx, dscale, dnoise, db = torch.ops.stylegan_di.modconv_epilogue_grad(
        dy, y, x, f, ctx.padding, ctx.filter_gain, scale, *ctx.options
    )
    wanted = ctx.needs_input_grad
    return (
        dx, None, None, None,
        dscale if wanted[4] else None,
        None if not wanted[5] else dnoise.sum(0, keepdim=True) if ctx.one_noise else dnoise,
        db.sum(0) if wanted[6] else None,
        None, None, None, None,
    )  # fmt: skip


def _setup_grad_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, y, x, f, ctx.padding, ctx.filter_gain, scale, *ctx.options = inputs
    ctx.save_for_backward(dy, y, x, f, scale)


def _grad_backward(ctx: Any, ddx: Tensor, ddscale: Tensor, ddnoise: Tensor, ddb: Tensor) -> tuple[Tensor | None, ...]:
    """Uses that the gradient is bilinear in dy and (x, scale), and that its derivative with respect to y is zero."""
    dy, y, x, f, scale = ctx.saved_tensors

    def through(t: Tensor) -> Tensor:
        return torch.ops.stylegan_di.bias_act_grad(t, y, None, 1, *ctx.options)

    scaled = ddx if scale is None else ddx * _over_pixels(scale)
    dt = _filter(scaled + x * _over_pixels(ddscale), f, ctx.padding, ctx.filter_gain) + ddnoise + _over_pixels(ddb)
    g = _filter_transposed(through(dy), f, ctx.padding, ctx.filter_gain)
    dscale = None if scale is None else (ddx * g).sum([2, 3])
    return through(dt), None, g * _over_pixels(ddscale), None, None, None, dscale, None, None, None, None


_modconv_epilogue.register_autograd(_backward, setup_context=_setup_context)
_modconv_epilogue_grad.register_autograd(_grad_backward, setup_context=_setup_grad_context)
