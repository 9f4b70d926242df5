"""The end of a residual block in one operator: y = x + b + alpha * other.

A convolution's bias costs a pass over memory on a GPU, as does the addition of what bypasses it; here both are one. The
operator is `stylegan_di::bias_add`, with a kernel for CUDA. Gradients of any order are available.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_di.torch_utils.ops.bias_act import sum_to_bias


def bias_add(x: Tensor, b: Tensor, other: Tensor, alpha: float = 1) -> Tensor:
    """Returns x + b + alpha * other, with x's layout.

    Args:
        x, other: [N,C,H,W].
        b: [C], of any dtype.
    """
    dtype = torch.promote_types(x.dtype, other.dtype)
    return torch.ops.stylegan_di.bias_add(x.to(dtype), b.to(dtype), other.to(dtype), alpha)


@torch.library.custom_op(
    "stylegan_di::bias_add", mutates_args=(), schema="(Tensor x, Tensor b, Tensor other, float alpha) -> Tensor"
)
def _bias_add(x: Tensor, b: Tensor, other: Tensor, alpha: float) -> Tensor:
    return (x + b[:, None, None]).add_(other, alpha=alpha)


@_bias_add.register_fake
def _bias_add_fake(x: Tensor, b: Tensor, other: Tensor, alpha: float) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.alpha = inputs[3]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    db = sum_to_bias(dy, 1) if ctx.needs_input_grad[1] else None
    dother = None if not ctx.needs_input_grad[2] else dy if ctx.alpha == 1 else dy * ctx.alpha
    return dy, db, dother, None


_bias_add.register_autograd(_backward, setup_context=_setup_context)
