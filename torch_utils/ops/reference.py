"""Switches ops to their reference implementations while native kernels are loaded, to compare the two."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from stylegan_di.torch_utils.ops import (
    bias_act,
    bias_add,
    filtered_lrelu,
    group_norm_silu,
    modconv_epilogue,
    upfirdn2d,
)

OPERATORS = {
    "bias_act": bias_act._bias_act,
    "bias_act_grad": bias_act._bias_act_grad,
    "bias_add": bias_add._bias_add,
    "upfirdn2d": upfirdn2d._upfirdn2d,
    "filtered_lrelu": filtered_lrelu._filtered_lrelu,
    "filtered_lrelu_tangent": filtered_lrelu._filtered_lrelu_tangent,
    "filtered_lrelu_grad": filtered_lrelu._filtered_lrelu_grad,
    "modconv_epilogue": modconv_epilogue._modconv_epilogue,
    "modconv_epilogue_grad": modconv_epilogue._modconv_epilogue_grad,
    "group_norm_silu": group_norm_silu._group_norm_silu,
    "group_norm_silu_grad": group_norm_silu._group_norm_silu_grad,
}


@contextlib.contextmanager
def reference_kernels(device: str = "cpu") -> Iterator[None]:
    """Inside this context the ops on `device` use their reference implementations; afterwards, the previous kernels."""
    library = torch.library.Library("stylegan_di", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*other operators may also be overridden")
            for name, operator in OPERATORS.items():
                library.impl(name, operator._init_fn, device.upper())
        yield
    finally:
        library._destroy()
