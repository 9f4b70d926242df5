"""Shift, group normalisation and SiLU in one operator: y = silu(normalise(x + shift) * weight + bias).

It precedes both convolutions of a block in EDM's U-Nets (Karras et al. 2022, arXiv 2206.00364, appendix F.2). A shift,
or weights and biases, per sample carry the conditioning on noise level and labels. The operators are
`stylegan_di::group_norm_silu` and its gradient `stylegan_di::group_norm_silu_grad`, which needs only x and each group's
mean and rstd from the forward pass, at least in float32. Gradients of any order are available.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.torch_utils.ops.upfirdn2d import layout


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """Returns silu(groupnorm(x + shift) * weight + bias), with x's shape, dtype and layout.

    Args:
        x: [N,C,H,W].
        weight, bias: [C], or [N,C] to differ between samples; of x's dtype.
        groups: number of groups, of C / groups channels each.
        eps: number added to the variance.
        shift: [N,C] or [1,C], of x's dtype; None for none.
        silu: False leaves the activation out.
    """
    weight = weight[None] if weight.ndim == 1 else weight
    bias = bias[None] if bias.ndim == 1 else bias
    return torch.ops.stylegan_di.group_norm_silu(x, shift, weight, bias, groups, eps, silu)[0]


# The operators.

_INPUTS = "Tensor x, Tensor? shift, Tensor weight, Tensor bias"


def _shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    return x if shift is None else x + shift[:, :, None, None]


def _supported(u: Tensor) -> Tensor:
    """Returns u in a layout that PyTorch's kernel takes: on a CPU either, elsewhere NCHW."""
    return u.contiguous(memory_format=layout(u) if u.device.type == "cpu" else torch.contiguous_format)


def _normalised(
    u: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns normalise(u) * weight + bias, and each group's mean and rstd [N,groups]."""
    u = _supported(u)
    size = (u.shape[0], u.shape[1], u.shape[2] * u.shape[3], groups, eps)
    if weight.shape[0] == bias.shape[0] == 1:
        return torch.native_group_norm(u, weight[0], bias[0], *size)
    v, mean, rstd = torch.native_group_norm(u, None, None, *size)
    return torch.addcmul(bias[:, :, None, None], v, weight[:, :, None, None]), mean, rstd


@torch.library.custom_op(
    "stylegan_di::group_norm_silu",
    mutates_args=(),
    schema=f"({_INPUTS}, int groups, float eps, bool silu) -> (Tensor y, Tensor mean, Tensor rstd)",
)
def _group_norm_silu(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    v, mean, rstd = _normalised(_shifted(x, shift), weight, bias, groups, eps)
    y = F.silu(v) if silu else v
    kept = torch.promote_types(x.dtype, torch.float32)
    return y.contiguous(memory_format=layout(x)), mean.to(kept), rstd.to(kept)


@_group_norm_silu.register_fake
def _group_norm_silu_fake(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape).contiguous(memory_format=layout(x))
    kept = torch.promote_types(x.dtype, torch.float32)
    return y, x.new_empty([x.shape[0], groups], dtype=kept), x.new_empty([x.shape[0], groups], dtype=kept)


@torch.library.custom_op(
    "stylegan_di::group_norm_silu_grad",
    mutates_args=(),
    schema=f"(Tensor dy, {_INPUTS}, Tensor mean, Tensor rstd, int groups, float eps, bool silu) "
    "-> (Tensor dx, Tensor dshift, Tensor dweight, Tensor dbias)",
)
def _group_norm_silu_grad(
    dy: Tensor,
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns dx, and the gradients of shift [N,C], of weight and of bias (in their shapes)."""
    u = _supported(_shifted(x, shift))
    dv = torch.ops.aten.silu_backward(dy, _normalised(u, weight, bias, groups, eps)[0]) if silu else dy
    size = (u.shape[0], u.shape[1], u.shape[2] * u.shape[3], groups)
    dv = dv.contiguous(memory_format=layout(u))  # PyTorch's kernel needs both in the same layout
    backward = torch.ops.aten.native_group_norm_backward
    mean, rstd = mean.to(u.dtype), rstd.to(u.dtype)
    if weight.shape[0] == bias.shape[0] == 1:
        dx, dweight, dbias = backward(dv, u, mean, rstd, weight[0], *size, [True, True, True])
        dweight, dbias = dweight[None], dbias[None]
    else:
        dx, _, _ = backward(dv * weight[:, :, None, None], u, mean, rstd, None, *size, [True, False, False])
        normalised = torch.native_group_norm(u, None, None, *size, eps)[0]
        dweight = (dv * normalised).sum([2, 3]).sum_to_size(weight.shape)
        dbias = dv.sum([2, 3]).sum_to_size(bias.shape)
    return dx.contiguous(memory_format=layout(x)), dx.sum([2, 3]), dweight, dbias


@_group_norm_silu_grad.register_fake
def _group_norm_silu_grad_fake(
    dy: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape).contiguous(memory_format=layout(x))
    return dx, x.new_empty(x.shape[:2]), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, shift, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, shift, weight, bias, output[1], output[2])


def _backward(ctx: Any, dy: Tensor, dmean: Tensor, drstd: Tensor) -> tuple[Tensor | None, ...]:
    x, shift, weight, bias, mean, rstd = ctx.saved_tensors
    dx, dshift, dweight, dbias = torch.ops.stylegan_di.group_norm_silu_grad(
        dy, x, shift, weight, bias, mean, rstd, *ctx.options
    )
    if shift is None or not ctx.needs_input_grad[1]:
        dshift = None
    elif shift.shape[0] == 1:
        dshift = dshift.sum(0, keepdim=True)
    return dx, dshift, dweight, dbias, None, None, None


def _setup_grad_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, shift, weight, bias, _, _, *ctx.options = inputs
    ctx.save_for_backward(dy, x, shift, weight, bias)


def _grad_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates `_gradient`, in which mean and rstd are functions of x."""
    dy, x, shift, weight, bias = ctx.saved_tensors
    zero = x.new_zeros([1, x.shape[1]])
    pull = torch.func.vjp(
        lambda *tensors: _gradient(*tensors, *ctx.options), dy, x, zero if shift is None else shift, weight, bias
    )[1]
    ddy, dx, dshift, dweight, dbias = pull(cotangents)
    return ddy, dx, None if shift is None else dshift, dweight, dbias, None, None, None, None, None


def _gradient(
    dy: Tensor, x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the same as `_group_norm_silu_grad`, from operations that PyTorch can differentiate."""

    def grouped(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], groups, -1)

    u = grouped(_shifted(x, shift))
    rstd = torch.rsqrt(u.var(2, correction=0, keepdim=True) + eps)
    normalised = (u - u.mean(2, keepdim=True)) * rstd
    pixels = normalised.reshape(x.shape)
    dv = dy
    if silu:
        v = pixels * weight[:, :, None, None] + bias[:, :, None, None]
        s = torch.sigmoid(v)
        dv = dy * (s * (1 + v * (1 - s)))
    slope = grouped(dv * weight[:, :, None, None])
    along = (slope * normalised).mean(2, keepdim=True)
    dx = ((slope - slope.mean(2, keepdim=True) - normalised * along) * rstd).reshape(x.shape)
    dweight, dbias = (dv * pixels).sum([2, 3]), dv.sum([2, 3])
    return dx, dx.sum([2, 3]), dweight.sum_to_size(weight.shape), dbias.sum_to_size(bias.shape)


_group_norm_silu.register_autograd(_backward, setup_context=_setup_context)
_group_norm_silu_grad.register_autograd(_grad_backward, setup_context=_setup_grad_context)
