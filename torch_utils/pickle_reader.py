"""Inert pickle nodes into plain values: the second half of reading a network file as data.

Only what NVlabs' network files consist of is understood: containers, numbers, text, numpy numbers and arrays, torch
tensors in legacy storage streams, and persistent objects, which become `PersistentObject`: a class's name and its
state. Neither that class nor the source embedded beside it is ever imported or run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from torch_utils.pickle_machine import (
    DAMAGED,
    NOT_A_NETWORK,
    Call,
    Global,
    Machine,
    Members,
    Pairs,
    PersistentId,
    Refusal,
)

MAX_DEPTH = 100  # nesting of values; networks reach some 40
STORAGE_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_PROTOCOL = 1001
FORMAT_VERSION = 6  # of persistent objects, in all of NVlabs' repositories
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
_NESTED_GLOBALS = {("torch", name): "storage_class" for name in STORAGE_DTYPES}
_NUMPY_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_META_KEYS = ("type", "version", "module_src", "class_name", "state")

# How other kinds of file begin: (offset, bytes) -> what it is, what to do.
_OTHER_FILES: list[tuple[int, bytes, str, str]] = [
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (0, b"PK\x03\x04", "a zip archive or torch.save file", "Pass a network pickle (.pkl) or .safetensors file."),
    (257, b"ustar", "a tar archive", "Unpack it first."),
    (0, b"version https://git-lfs", "a git-LFS pointer", "Fetch the file itself with `git lfs pull`."),
    (0, b"<", "an HTML or XML page", "The download went wrong; fetch the file itself."),
]


class RefusedFileError(UserError):
    """A network file that is not used. The message names the file, what was found in it, and the remedy."""

    def __init__(self, source: str, found: str, remedy: str = NOT_A_NETWORK) -> None:
        super().__init__(f"{source}: found {found}. {remedy}")
        self.source = source
        self.found = found
        self.remedy = remedy


@dataclass(eq=False)
class PersistentObject:
    """An object of a network file, as data.

    `class_name` and `state` (the instance's __dict__) as stored; `module_src_sha256` of the source embedded beside it
    ('' for the containers of torch.nn, which carry none); `version` of the format; `source` the file's name.
    """

    class_name: str
    state: dict[str, Any]
    module_src_sha256: str
    version: int
    source: str


def read_pickle(data: bytes | bytearray | memoryview, source: str, *, python2: bool = False) -> Any:
    """The value of a network pickle, read without importing or executing anything it names.

    Args:
        data: the file's contents.
        source: the file's name, for messages.
        python2: whether Python 2 wrote it, as it did CIFAR-10's batches; see `Machine`.

    Returns:
        dicts (str keys), lists, tuples, sets of str, str, bytes, bool, int, float, None, numpy arrays (read-only),
        torch tensors, PersistentObjects. The memory is at most a few times the file's size.

    Raises:
        RefusedFileError: for anything but such a file.
    """
    view = memoryview(data)
    try:
        _check_kind(view)
        machine = Machine(view, python2=python2)
        root = machine.run()
        if machine.position != len(view):
            raise Refusal(f"{len(view) - machine.position} bytes after the end of the pickle")
        return _Interpreter(source, machine.opcodes).value(root)
    except Refusal as refusal:
        raise RefusedFileError(source, refusal.found, refusal.remedy) from None


def _check_kind(data: memoryview) -> None:
    if not len(data):
        raise Refusal("an empty file", DAMAGED)
    for offset, magic, kind, remedy in _OTHER_FILES:
        if data[offset : offset + len(magic)] == magic:
            raise Refusal(kind, remedy)


class _Interpreter:
    """Turns the nodes of one file into values; each node once, however often the memo repeats it."""

    def __init__(self, source: str, opcodes: int) -> None:
        self.source = source
        self.opcodes = opcodes
        self.max_size = 4 * opcodes + 100  # values when every repetition counts: no bombs of shared nodes
        self.size = 0
        self.depth = 0
        self.done: dict[int, tuple[Any, int]] = {}  # id(node) -> value, size
        self.open: set[int] = set()
        self.hashes: dict[str, str] = {}
        self.storages: dict[int, Tensor] = {}  # id(bytes node) -> flat tensor
        self.calls: dict[str, Callable[[Call], Any]] = {
            "persistent": self.persistent,
            "ordered_dict": self.mapping,
            "easy_dict": self.mapping,
            "container": self.container,
            "parameter": self.parameter,
            "tensor": self.tensor,
            "scalar": self.scalar,
            "array": self.array,
            "set": self.set_,
        }

    def value(self, node: Any) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            self.count(1)
            return node
        key = id(node)
        if key in self.done:
            value, size = self.done[key]
            self.count(size)
            return value
        if key in self.open:
            raise Refusal("a value that contains itself")
        if self.depth >= MAX_DEPTH:
            raise Refusal(f"values nested deeper than {MAX_DEPTH}")
        before = self.size
        self.open.add(key)
        self.depth += 1
        self.count(1)
        value = self.compound(node)
        self.depth -= 1
        self.open.remove(key)
        self.done[key] = value, self.size - before
        return value

    def count(self, size: int) -> None:
        self.size += size
        if self.size > self.max_size:
            raise Refusal("values that repeat one another far beyond the file's own size")

    def compound(self, node: Any) -> Any:
        if isinstance(node, Pairs):
            return self.dict_(node.pairs)
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if isinstance(node, tuple):
            return tuple([self.value(item) for item in node])
        if isinstance(node, Members):
            return self.strings(node.members)
        if isinstance(node, memoryview):
            return bytes(node)
        if isinstance(node, Call) and node.function.role in self.calls:
            return self.calls[node.function.role](node)
        raise Refusal("a global or storage where a value belongs")

    def dict_(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        result = {}
        for key, item in pairs:
            if not isinstance(key, str):
                raise Refusal(f"a dict key of type {type(key).__name__}, not text")
            result[key] = self.value(item)
        return result

    def strings(self, members: Any) -> set[str]:
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise Refusal("a set of other things than text")
        self.count(len(members))
        return set(members)

    def set_(self, node: Call) -> set[str]:
        (members,) = _arguments(node, 1)
        return self.strings(members)

    def mapping(self, node: Call) -> dict[str, Any]:
        _arguments(node, 0)
        return self.dict_(node.pairs)

    def container(self, node: Call) -> PersistentObject:
        _arguments(node, 0)
        if not isinstance(node.state, Pairs):
            raise Refusal(f"a {node.function.name} whose state is no dict")
        return PersistentObject(node.function.name, self.dict_(node.state.pairs), "", FORMAT_VERSION, self.source)

    def persistent(self, node: Call) -> PersistentObject:
        (meta_node,) = _arguments(node, 1)
        meta = self.value(meta_node)
        if not isinstance(meta, dict) or set(meta) != set(_META_KEYS):
            raise Refusal(f"a persistent object without the entries {', '.join(_META_KEYS)}")
        kind, version, module_src, class_name, state = (meta[key] for key in _META_KEYS)
        if not isinstance(kind, str) or kind != "class":
            raise Refusal("a persistent object that is no class's")
        if type(version) is not int or version != FORMAT_VERSION:
            remedy = "Load and save it again with the NVlabs code that wrote it."
            raise Refusal(f"persistent objects of another version than {FORMAT_VERSION}", remedy)
        if not isinstance(class_name, str) or not isinstance(module_src, str) or not isinstance(state, dict):
            raise Refusal("a persistent object whose class name, source or state is of a wrong type")
        if module_src not in self.hashes:
            self.hashes[module_src] = hashlib.sha256(module_src.encode()).hexdigest()
        return PersistentObject(class_name, state, self.hashes[module_src], version, self.source)

    # Tensors.

    def parameter(self, node: Call) -> Tensor:
        tensor_node, requires_grad, _hooks = _arguments(node, 3)
        if not _is_call(tensor_node, "tensor") or not isinstance(requires_grad, bool):
            raise Refusal("a parameter without a tensor")
        return self.value(tensor_node)

    def tensor(self, node: Call) -> Tensor:
        storage_node, offset, size, stride, requires_grad, _hooks = _arguments(node, 6)
        if not _is_call(storage_node, "storage") or not isinstance(requires_grad, bool):
            raise Refusal("a tensor without a storage")
        storage = self.storage(storage_node)
        _check_view(storage.numel(), offset, size, stride)
        return storage.as_strided(size, stride, offset)

    def storage(self, node: Call) -> Tensor:
        """The flat tensor of a legacy torch stream: magic, protocol, system, storage, keys, count, raw data."""
        (data,) = _arguments(node, 1)
        if not isinstance(data, memoryview):
            raise Refusal("a tensor's storage that is no bytes")
        if id(data) not in self.storages:
            self.storages[id(data)] = self.read_storage(data)
        return self.storages[id(data)]

    def read_storage(self, data: memoryview) -> Tensor:
        position = 0
        parts = []
        for _ in range(5):
            machine = Machine(
                data, position, known=_NESTED_GLOBALS, opcodes=self.opcodes, allow_persistent_ids=True
            )
            parts.append(machine.run())
            position, self.opcodes = machine.position, machine.opcodes
        magic, protocol, system, reference, keys = parts
        if magic != STORAGE_MAGIC or protocol != STORAGE_PROTOCOL:
            raise Refusal("a tensor's storage that is no torch stream")
        if not isinstance(system, Pairs) or ("little_endian", True) not in system.pairs[:10]:
            raise Refusal("a tensor's storage of a big-endian machine", "Save it again on a little-endian machine.")
        dtype, key, count = _storage_reference(reference)
        if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], str) or keys[0] != key:
            raise Refusal("a tensor's storage with other keys than its own", DAMAGED)
        header, raw = data[position : position + 8], data[position + 8 :]
        if len(header) < 8 or int.from_bytes(header, "little") != count or len(raw) != count * dtype.itemsize:
            raise Refusal(f"a tensor's storage of {count} numbers in {len(raw)} bytes ({dtype})", DAMAGED)
        return torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    # Numpy.

    def scalar(self, node: Call) -> bool | int | float:
        dtype_node, data = _arguments(node, 2)
        dtype = _numpy_dtype(dtype_node)
        if not isinstance(data, memoryview) or len(data) != dtype.itemsize:
            raise Refusal("a numpy number of the wrong length", DAMAGED)
        return np.frombuffer(data, dtype)[0].item()

    def array(self, node: Call) -> np.ndarray:
        kind, _shape, _code = _arguments(node, 3)
        if not isinstance(kind, Global) or kind.role != "ndarray" or not isinstance(node.state, tuple):
            raise Refusal("a numpy array of an unknown kind")
        if len(node.state) != 5:
            raise Refusal("a numpy array without its contents", DAMAGED)
        _version, shape, dtype_node, fortran, data = node.state
        dtype = _numpy_dtype(dtype_node)
        if not _are_sizes(shape) or not isinstance(fortran, bool) or not isinstance(data, memoryview):
            raise Refusal("a numpy array of unknown form", DAMAGED)
        if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(data):
            raise Refusal(f"a numpy array whose shape is not that of its {len(data)} bytes", DAMAGED)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _arguments(node: Call, count: int) -> tuple[Any, ...]:
    if len(node.arguments) != count:
        raise Refusal(f"{node.function.name} with {len(node.arguments)} arguments, not {count}")
    return node.arguments


def _is_call(node: Any, role: str) -> bool:
    return isinstance(node, Call) and node.function.role == role


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(item) is int and 0 <= item < 2**60 for item in value)


def _check_view(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Holds that a tensor lies within its storage of numel elements and that no two of its elements share one."""
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


def _storage_reference(node: Any) -> tuple[torch.dtype, str, int]:
    """dtype, key and count of ('storage', class, key, device, count, None)."""
    value = node.value if isinstance(node, PersistentId) else None
    if not isinstance(value, tuple) or len(value) != 6:
        raise Refusal("a torch stream without a storage")
    tag, kind, key, _device, count, view = value
    if not isinstance(tag, str) or tag != "storage" or not isinstance(kind, Global) or view is not None:
        raise Refusal("a torch stream without a plain storage")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise Refusal("a storage whose key or count is of a wrong type", DAMAGED)
    return STORAGE_DTYPES[kind.name], key, count


def _numpy_dtype(node: Any) -> np.dtype:
    """The dtype of `dtype(code, ...)` with the byte order that BUILD sets."""
    if not _is_call(node, "dtype") or not node.arguments or not isinstance(node.state, tuple) or len(node.state) < 2:
        raise Refusal("a numpy value without a type")
    code, order = node.arguments[0], node.state[1]
    if not isinstance(code, str) or code not in _NUMPY_DTYPES or not isinstance(order, str) or order not in ("<", "|"):
        raise Refusal("a numpy value that is not of little-endian plain numbers (objects could run code)")
    return np.dtype("<" + code)
