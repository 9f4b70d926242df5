"""Bias, activation, gain and clamp as one op: y = clamp(act(x + b) * gain), whose gradient is an op as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@dataclass(frozen=True)
class Activation:
    """An activation and its derivatives, each a function of (x, alpha)."""

    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    second: Callable[[Tensor, float], Tensor] | None  # None: zero almost everywhere
    gain: float = 1.0
    alpha: float = 0.0


def _selu_derivative(x: Tensor, _: float) -> Tensor:
    return SELU_SCALE * torch.where(x > 0, torch.ones_like(x), SELU_ALPHA * x.clamp(max=0).exp())


def _selu_second(x: Tensor, _: float) -> Tensor:
    return SELU_SCALE * torch.where(x > 0, torch.zeros_like(x), SELU_ALPHA * x.clamp(max=0).exp())


def _swish_second(x: Tensor, _: float) -> Tensor:
    s = x.sigmoid()
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _sigmoid_second(x: Tensor, _: float) -> Tensor:
    s = x.sigmoid()
    return s * (1 - s) * (1 - 2 * s)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, _: x, lambda x, _: torch.ones_like(x), None),
    "relu": Activation(lambda x, _: F.relu(x), lambda x, _: (x > 0).to(x.dtype), None, gain=sqrt(2)),
    "lrelu": Activation(
        lambda x, alpha: F.leaky_relu(x, alpha),
        lambda x, alpha: torch.where(x > 0, 1.0, alpha).to(x.dtype),
        None,
        gain=sqrt(2),
        alpha=0.2,
    ),
    "tanh": Activation(
        lambda x, _: x.tanh(), lambda x, _: 1 - x.tanh().square(), lambda x, _: -2 * x.tanh() * (1 - x.tanh().square())
    ),
    "sigmoid": Activation(lambda x, _: x.sigmoid(), lambda x, _: x.sigmoid() * (1 - x.sigmoid()), _sigmoid_second),
    "elu": Activation(
        lambda x, _: F.elu(x),
        lambda x, _: torch.where(x > 0, torch.ones_like(x), x.clamp(max=0).exp()),
        lambda x, _: torch.where(x > 0, torch.zeros_like(x), x.clamp(max=0).exp()),
    ),
    "selu": Activation(lambda x, _: F.selu(x), _selu_derivative, _selu_second),
    "softplus": Activation(
        lambda x, _: F.softplus(x), lambda x, _: x.sigmoid(), lambda x, _: x.sigmoid() * (1 - x.sigmoid())
    ),
    "swish": Activation(
        lambda x, _: F.silu(x), lambda x, _: x.sigmoid() * (1 + x * (1 - x.sigmoid())), _swish_second, gain=sqrt(2)
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
    """clamp(act(x + b; alpha) * gain) to [-clamp, clamp].

    Args:
        x: any shape and float type.
        b: bias, [x.shape[dim]], or None.
        dim: the dimension of x that the bias belongs to.
        act: a key of ACTIVATIONS.
        alpha: slope parameter of lrelu; None: 0.2.
        gain: None: the activation's own, which keeps the variance.
        clamp: None: unbounded.
    """
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if act == "linear" and b is None and gain == 1 and clamp is None:
        return x
    return _bias_act(x, b, dim, act, alpha, gain, -1.0 if clamp is None else float(clamp))


def _with_bias(x: Tensor, b: Tensor | None, dim: int) -> Tensor:
    return x if b is None else x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])


@torch.library.custom_op("stylegan_di::bias_act", mutates_args=())
def _bias_act(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    """The reference; a negative clamp means none."""
    y = ACTIVATIONS[act].function(_with_bias(x, b, dim), alpha)
    if gain != 1 or y is x:
        y = y * gain
    return y if clamp < 0 else y.clamp(-clamp, clamp)


@torch.library.custom_op("stylegan_di::bias_act_grad", mutates_args=())
def _bias_act_grad(
    dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float
) -> Tensor:
    """The gradient in x: dy * gain * act'(x + b), 0 where y is clamped."""
    total = _with_bias(x, b, dim)
    dx = ACTIVATIONS[act].derivative(total, alpha).mul_(gain).mul_(dy)
    if clamp >= 0:
        dx.masked_fill_(_clamped(total, act, alpha, gain, clamp), 0)
    return dx


def _clamped(total: Tensor, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    return (ACTIVATIONS[act].function(total, alpha) * gain).abs() >= clamp


@_bias_act.register_fake
def _(x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    return torch.empty_like(x)


@_bias_act_grad.register_fake
def _(dy: Tensor, x: Tensor, b: Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> Tensor:
    return torch.empty_like(x)


def _bias_gradient(dx: Tensor, dim: int) -> Tensor:
    return dx.sum([i for i in range(dx.ndim) if i != dim])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, b, *ctx.options = inputs
    ctx.save_for_backward(x, b)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    x, b = ctx.saved_tensors
    dx = _bias_act_grad(dy, x, b, *ctx.options)
    db = _bias_gradient(dx, ctx.options[0]) if b is not None and ctx.needs_input_grad[1] else None
    return dx, db, None, None, None, None, None


_bias_act.register_autograd(_backward, setup_context=_setup_context)


def _grad_setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    dy, x, b, *ctx.options = inputs
    ctx.save_for_backward(dy, x, b)


def _grad_backward(ctx, ddx):  # type: ignore[no-untyped-def]
    """bias_act_grad is linear in dy; in x it depends on the second derivative."""
    dy, x, b = ctx.saved_tensors
    dim, act, alpha, gain, clamp = ctx.options
    d_dy = _bias_act_grad(ddx, x, b, *ctx.options) if ctx.needs_input_grad[0] else None
    second = ACTIVATIONS[act].second
    d_x = d_b = None
    if second is not None and any(ctx.needs_input_grad[1:3]):
        total = _with_bias(x, b, dim)
        d_x = ddx * dy * second(total, alpha) * gain
        if clamp >= 0:
            d_x = d_x.masked_fill(_clamped(total, act, alpha, gain, clamp), 0)
        if b is not None and ctx.needs_input_grad[2]:
            d_b = _bias_gradient(d_x, dim)
    return d_dy, d_x, d_b, None, None, None, None, None


_bias_act_grad.register_autograd(_grad_backward, setup_context=_grad_setup_context)
