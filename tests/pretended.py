"""A device that is not there: what the CPU computes, as a GPU without float64 would let it be computed.

Its tensors say that they are on DEVICE, hold one of the CPU, and refuse float64 and operators on tensors of both, as
Apple's GPUs do. PyTorch's name for the device is 'meta:1', because 'meta' is one on which it differentiates here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from stylegan_di.torch_utils import precision

DEVICE = torch.device("meta:1")  # meta itself keeps its meaning
TOO_WIDE = (torch.float64, torch.complex128)


class Pretended(Tensor):
    """A tensor of DEVICE."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        if inner.dtype in TOO_WIDE:
            raise TypeError(f"this device has no {inner.dtype}")
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Sees the operators that get no tensor of DEVICE but may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, by the CPU."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, Pretended)]
    name = func.overloadpacket.__name__
    if there and name not in ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"):
        here = [value for value in tensors if not isinstance(value, Pretended) and value.ndim]
        assert not here, f"{func}: tensors of two devices"
    to = kwargs.get("device")
    wraps = bool(there) if to is None else torch.device(to) == DEVICE
    if to is not None and wraps:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if name == "copy_":
        wraps = isinstance(args[0], Pretended)
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not wraps:
        return result
    wrapped = tree_map(lambda value: Pretended(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DEVICE is there in this context."""
    with monkeypatch.context() as patch, Dispatch():
        patch.setattr(precision, "WITHOUT_FLOAT64", {DEVICE.type})
        for name in ("autocast", "is_autocast_enabled"):  # which know the names of devices that PyTorch has
            patch.setattr(torch, name, functools.partial(_of_the_cpu, getattr(torch, name)))
        for name in ("tensor", "as_tensor"):  # which give an empty tensor on any 'meta'
            patch.setattr(torch, name, functools.partial(_moved, getattr(torch, name)))
        patch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None)
        yield


def _of_the_cpu(function: Any, device: str, *args: Any, **kwargs: Any) -> Any:
    return function("cpu" if device == DEVICE.type else device, *args, **kwargs)


def _moved(function: Any, data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    there = device is not None and torch.device(device) == DEVICE
    made = function(data, *args, device=None if there else device, **kwargs)
    return made.to(DEVICE) if there else made
