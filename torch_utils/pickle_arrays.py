"""Reads the numbers in network files: torch's storages in their legacy streams and their views, numpy's data.

A storage's count, a view's bounds and strides and an array's shape are checked against the bytes in the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import DAMAGED, Budget
from stylegan_di.torch_utils.pickle_machine import Call, Global, Machine, Pairs, PersistentId, Refusal

STORAGE_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_PROTOCOL = 1001
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
NESTED_GLOBALS = {("torch", name): "storage_class" for name in STORAGE_DTYPES}
_NUMPY_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def is_call(node: Any, role: str) -> bool:
    """Whether a node is a recorded call of a function with this role."""
    return isinstance(node, Call) and node.function.role == role


def read_storage(data: memoryview, budget: Budget) -> Tensor:
    """Reads a legacy torch stream (magic, protocol, system, storage, keys, count, raw data) as a flat tensor."""
    position = 0
    parts = []
    for _ in range(5):
        machine = Machine(data, position, budget=budget, known=NESTED_GLOBALS, allow_persistent_ids=True)
        parts.append(machine.run())
        position = machine.position
    magic, protocol, system, reference, keys = parts
    if not isinstance(magic, int) or magic != STORAGE_MAGIC or protocol != STORAGE_PROTOCOL:
        raise Refusal("a tensor's storage that is no torch stream")
    if not isinstance(system, Pairs) or ("little_endian", True) not in system.pairs[:10]:
        raise Refusal("a tensor's storage of a big-endian machine", "Save it again on a little-endian machine.")
    dtype, key, count = storage_reference(reference)
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], str) or keys[0] != key:
        raise Refusal("a tensor's storage with other keys than its own", DAMAGED)
    header, raw = data[position : position + 8], data[position + 8 :]
    if len(header) < 8 or int.from_bytes(header, "little") != count or len(raw) != count * dtype.itemsize:
        raise Refusal(f"a tensor's storage of {count} numbers in {len(raw)} bytes ({dtype})", DAMAGED)
    budget.spend(bytes=len(raw))
    return torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def check_view(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuses a tensor that reaches beyond its storage of numel elements, or whose elements overlap."""
    if type(offset) is not int or offset < 0 or not _are_sizes(size) or not _are_sizes(stride):
        raise Refusal("a tensor whose offset, size or stride is no whole number", DAMAGED)
    if len(size) != len(stride) or len(size) > 16:
        raise Refusal(f"a tensor of {len(size)} sizes and {len(stride)} strides", DAMAGED)
    if math.prod(max(length, 1) for length in size) >= 2**60:
        raise Refusal("a tensor of impossible size", DAMAGED)
    extent = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length > 1:
            if step < extent:
                raise Refusal("a tensor whose strides are zero or overlap")
            extent += step * (length - 1)
    if 0 not in size and offset + extent > numel:
        raise Refusal("a tensor that reaches beyond its storage", DAMAGED)


def read_scalar(dtype: np.dtype, data: memoryview) -> bool | int | float:
    """Returns a numpy number as Python's."""
    if len(data) != dtype.itemsize:
        raise Refusal("a numpy number of the wrong length", DAMAGED)
    return np.frombuffer(data, dtype)[0].item()


def read_array(shape: Any, dtype: np.dtype, fortran: Any, data: memoryview) -> np.ndarray:
    """Returns a numpy array that shares the file's bytes."""
    if not _are_sizes(shape) or not isinstance(fortran, bool):
        raise Refusal("a numpy array of unknown form", DAMAGED)
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
        raise Refusal(f"a numpy array whose shape is not that of its {len(data)} bytes", DAMAGED)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and 0 <= item < 2**60 for item in value)


def storage_reference(node: Any) -> tuple[torch.dtype, str, int]:
    """Returns dtype, key and count from ('storage', class, key, device, count), with a None behind in old streams."""
    value = node.value if isinstance(node, PersistentId) else None
    if not isinstance(value, tuple) or len(value) not in (5, 6):
        raise Refusal("a torch stream without a storage")
    tag, kind, key, _device, count, view = (*value, None)[:6]
    is_class = isinstance(kind, Global) and kind.role == "storage_class"
    if not isinstance(tag, str) or tag != "storage" or not is_class or view is not None:
        raise Refusal("a torch stream without a plain storage")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise Refusal("a storage whose key or count is of a wrong type", DAMAGED)
    return STORAGE_DTYPES[kind.name], key, count


def numpy_dtype(node: Any) -> np.dtype:
    """Returns the dtype of a `dtype(code, ...)` call with the byte order that BUILD sets."""
    if not is_call(node, "dtype") or not node.arguments or not isinstance(node.state, tuple) or len(node.state) < 2:
        raise Refusal("a numpy value without a type")
    code, order = node.arguments[0], node.state[1]
    if not isinstance(code, str) or code not in _NUMPY_DTYPES or not isinstance(order, str) or order not in ("<", "|"):
        raise Refusal("a numpy value that is not of little-endian plain numbers (objects could run code)")
    return np.dtype("<" + code)
