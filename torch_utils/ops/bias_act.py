"""Bias, activation, gain and clamp in one operator: y = clamp(act(x + b; alpha) * gain, -clamp, clamp).

It ends StyleGAN2's layers (Karras et al. 2020, arXiv 1912.04958). The operators are `stylegan_di::bias_act` and its
gradient `stylegan_di::bias_act_grad`, which computes

    dx = dy * gain * act'(x + b) * [|y| < clamp]

from the output y, so that the input need not be kept; only swish, which has no inverse, needs x and b. Gradients of
any order are available.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


@dataclass(frozen=True)
class Activation:
    """An activation a = act(u; alpha) and its derivatives, as functions of r = a, or of r = u if `needs_input`.

    `forward(u, alpha)` may overwrite u; `backward(dy, r, alpha)` returns a new tensor dy * act'(u); `bend(r)` is the
    derivative of act'(u) with respect to r, None if it is zero everywhere.
    """

    forward: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float], Tensor]
    bend: Callable[[Tensor], Tensor] | None = None
    default_gain: float = 1.0
    default_alpha: float = 0.0
    needs_input: bool = False
    homogeneous: bool = False  # act(c * u) = c * act(u) for c > 0


def _selu_backward(dy: Tensor, a: Tensor, alpha: float) -> Tensor:
    return dy * torch.where(a > 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA)


def _swish_backward(dy: Tensor, u: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(u)
    return dy * (s * (1 + u * (1 - s)))


def _swish_bend(u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 - s) * (2 + u * (1 - 2 * s))


def _negative(a: Tensor) -> Tensor:
    return (a <= 0).to(a.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda u, alpha: u, lambda dy, a, alpha: dy.clone(), homogeneous=True),
    "relu": Activation(
        lambda u, alpha: u.relu_(),
        lambda dy, a, alpha: torch.ops.aten.threshold_backward(dy, a, 0),
        default_gain=math.sqrt(2),
        homogeneous=True,
    ),
    "lrelu": Activation(
        lambda u, alpha: F.leaky_relu_(u, alpha),
        lambda dy, a, alpha: torch.ops.aten.leaky_relu_backward(dy, a, alpha, False),  # a has the sign of u
        default_gain=math.sqrt(2),
        default_alpha=0.2,
        homogeneous=True,
    ),
    "tanh": Activation(lambda u, alpha: u.tanh_(), lambda dy, a, alpha: dy * (1 - a * a), lambda a: -2 * a),
    "sigmoid": Activation(lambda u, alpha: u.sigmoid_(), lambda dy, a, alpha: dy * (a * (1 - a)), lambda a: 1 - 2 * a),
    "elu": Activation(lambda u, alpha: F.elu_(u), lambda dy, a, alpha: dy * (a.clamp(max=0) + 1), _negative),
    "selu": Activation(lambda u, alpha: torch.selu_(u), _selu_backward, _negative),
    "softplus": Activation(
        lambda u, alpha: F.softplus(u), lambda dy, a, alpha: dy * -torch.expm1(-a), lambda a: torch.exp(-a)
    ),
    "swish": Activation(
        lambda u, alpha: F.silu(u), _swish_backward, _swish_bend, default_gain=math.sqrt(2), needs_input=True
    ),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Returns clamp(act(x + b) * gain), with x's shape, dtype and layout.

    Args:
        x: a tensor of any shape.
        b: bias [x.shape[dim]], of x's dtype.
        act: a key of ACTIVATIONS.
        alpha: slope of lrelu below 0; default 0.2.
        gain: > 0; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: limit on the absolute value of the result, >= 0; None for no limit.

    Raises:
        ValueError: for an unknown activation, a gain or clamp out of range, or a bias that does not fit.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"{act=}; accepted: {', '.join(ACTIVATIONS)}")
    activation = ACTIVATIONS[act]
    alpha = activation.default_alpha if alpha is None else float(alpha)
    gain = activation.default_gain if gain is None else float(gain)
    if gain <= 0 or (clamp is not None and clamp < 0):
        raise ValueError(f"{gain=}, {clamp=}; accepted: gain > 0, clamp >= 0 or None")
    if b is not None and (b.ndim != 1 or len(b) != x.shape[dim]):
        raise ValueError(f"a bias of shape {list(b.shape)} for dimension {dim} of {list(x.shape)}")
    if act == "linear" and b is None and gain == 1 and clamp is None:
        return x
    return torch.ops.stylegan_di.bias_act(x, b, dim, act, alpha, gain, representable(clamp, x.dtype))


@torch.compiler.assume_constant_result
def representable(clamp: float | None, dtype: torch.dtype) -> float | None:
    """Rounds a limit to a dtype, so that a clamped number is seen to be at the limit."""
    return None if clamp is None else float(torch.tensor(clamp, dtype=dtype))


def _along(b: Tensor, dim: int, ndim: int) -> Tensor:
    """Reshapes b [n] to broadcast along dimension `dim` of `ndim`."""
    return b.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


# The operators.

_OPTIONS = "int dim, str act, float alpha, float gain, float? clamp"


@torch.library.custom_op(
    "stylegan_di::bias_act", mutates_args=(), schema=f"(Tensor x, Tensor? b, {_OPTIONS}) -> Tensor"
)
def _bias_act(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    activation = ACTIVATIONS[act]
    scale = gain if activation.homogeneous else 1.0  # adding the bias can apply this gain at no cost
    u = x * scale if b is None else torch.add(_along(b * scale, dim, x.ndim), x, alpha=scale)
    y = activation.forward(u, alpha)
    if scale != gain:
        y.mul_(gain)
    return y if clamp is None else y.clamp_(-clamp, clamp)


@_bias_act.register_fake
def _bias_act_fake(
    x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(
    "stylegan_di::bias_act_grad", mutates_args=(), schema=f"(Tensor dy, Tensor ref, Tensor? b, {_OPTIONS}) -> Tensor"
)
def _bias_act_grad(
    dy: Tensor, ref: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    dx = ACTIVATIONS[act].backward(dy, _argument(ref, b, dim, act, gain), alpha)
    if gain != 1:
        dx.mul_(gain)
    return dx if clamp is None else dx.masked_fill_(_clamped(ref, b, dim, act, alpha, gain, clamp), 0)


@_bias_act_grad.register_fake
def _bias_act_grad_fake(
    dy: Tensor, ref: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None
) -> Tensor:
    return torch.empty_like(dy)


def _argument(ref: Tensor, b: Tensor | None, dim: int, act: str, gain: float) -> Tensor:
    """Returns the argument of `backward` and `bend`: x + b, act(x + b), or any tensor of its sign if that is enough."""
    if ACTIVATIONS[act].homogeneous:
        return ref
    if not ACTIVATIONS[act].needs_input:
        return ref / gain
    return ref if b is None else ref + _along(b, dim, ref.ndim)


def _clamped(
    ref: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    """Returns a bool mask of where the output has reached the limit."""
    y = _bias_act(ref, b, dim, act, alpha, gain, None) if ACTIVATIONS[act].needs_input else ref
    return y.abs() >= clamp


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, dim, act, alpha, gain, clamp = inputs
    ctx.options = dim, act, alpha, gain, clamp
    ctx.has_bias = b is not None
    if ACTIVATIONS[act].needs_input:
        ctx.save_for_backward(x, b)
    elif act != "linear" or clamp is not None:
        ctx.save_for_backward(output, None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dim, act, _, gain, clamp = ctx.options
    if act == "linear" and clamp is None:
        dx = dy if gain == 1 else dy * gain
    else:
        ref, b = ctx.saved_tensors
        dx = torch.ops.stylegan_di.bias_act_grad(dy, ref, b, *ctx.options)
    db = sum_to_bias(dx, dim) if ctx.has_bias and ctx.needs_input_grad[1] else None
    return dx, db, None, None, None, None, None


def sum_to_bias(dx: Tensor, dim: int) -> Tensor:
    """Sums over all dimensions but `dim`."""
    if dx.is_cuda and dx.ndim == 4 and dim == 1:  # in one step PyTorch leaves the end to a few threads
        return dx.sum([2, 3], dtype=torch.promote_types(dx.dtype, torch.float32)).sum(0).to(dx.dtype)
    axes = [axis for axis in range(dx.ndim) if axis != dim]
    return dx.sum(axes) if axes else dx


def _setup_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, ref, b, *options = inputs
    ctx.options = options
    ctx.save_for_backward(dy, ref, b)


def _grad_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of dx = dy * gain * act'(r), r = ref + b or ref / gain, with respect to dy, ref and b."""
    dy, ref, b = ctx.saved_tensors
    dim, act, alpha, gain, clamp = ctx.options
    ddy = torch.ops.stylegan_di.bias_act_grad(ddx, ref, b, *ctx.options) if ctx.needs_input_grad[0] else None
    bend = ACTIVATIONS[act].bend
    dref = db = None
    if bend is not None and any(ctx.needs_input_grad[1:3]):
        dref = ddx * dy * bend(_argument(ref, b, dim, act, gain))
        if ACTIVATIONS[act].needs_input:
            dref = dref * gain
        if clamp is not None:
            dref = dref.masked_fill(_clamped(ref, b, dim, act, alpha, gain, clamp), 0)
        if b is not None:
            db = sum_to_bias(dref, dim)
    return ddy, dref, db, None, None, None, None, None


_bias_act.register_autograd(_backward, setup_context=_setup_context)
_bias_act_grad.register_autograd(_grad_backward, setup_context=_setup_grad_context)
