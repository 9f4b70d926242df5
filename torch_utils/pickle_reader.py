"""Turns inert pickle nodes into plain values: the second half of reading a network file as data.

It understands only what NVlabs' network files consist of: containers, numbers, text, numpy numbers and arrays, torch
tensors in legacy storage streams, and persistent objects. The latter become a `PersistentObject` of class name and
state; neither the class nor the source embedded beside it is ever imported or run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stylegan_di.dnnlib.untrusted import DAMAGED, Budget, RefusedFileError, untrusted
from stylegan_di.torch_utils.pickle_arrays import (
    check_view,
    is_call,
    numpy_dtype,
    read_array,
    read_scalar,
    read_storage,
)
from stylegan_di.torch_utils.pickle_machine import (
    R3GAN_PACKAGES,
    R3GAN_WRAPPERS,
    Call,
    Global,
    Machine,
    Members,
    Pairs,
    Refusal,
)

VALUE_BYTES = 100  # of memory that a value takes, with its place in a list or dict
TENSOR_BYTES = 1000
MAX_DEPTH = 100  # nesting of values; networks reach about 40
FORMAT_VERSION = 6  # the version of persistent objects in all of NVlabs' repositories
TENSORFLOW_VERSION = 4  # the oldest version of dnnlib.tflib.network in StyleGAN2's pickles
_META_KEYS = ("type", "version", "module_src", "class_name", "state")
_TENSORFLOW_KEYS = ("version", "name", "static_kwargs", "components", "build_module_src", "variables")

# How other kinds of file begin: offset, bytes, what the file is, what to do.
_OTHER_FILES: list[tuple[int, bytes, str, str]] = [
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (0, b"PK\x03\x04", "a zip archive or torch.save file", "Pass a network pickle (.pkl) or .safetensors file."),
    (257, b"ustar", "a tar archive", "Unpack it first."),
    (0, b"version https://git-lfs", "a git-LFS pointer", "Fetch the file itself with `git lfs pull`."),
    (0, b"<", "an HTML or XML page", "The download went wrong; fetch the file itself."),
]


@dataclass(eq=False)
class PersistentObject:
    """An object of a network file, as data.

    `class_name` and `state` (the instance's __dict__) are as stored; `module_src_sha256` is the hash of the embedded
    source ('' for plain modules, which have none); `version` is the format's; `source` is the file's name.
    """

    class_name: str
    state: dict[str, Any]
    module_src_sha256: str
    version: int
    source: str


@dataclass(eq=False)
class TensorFlowNetwork:
    """A network of TensorFlow-era StyleGAN2, as data: the arguments of its build function, its variables, its parts.

    `module_src_sha256` is the hash of the embedded source, and `source` is the file's name.
    """

    name: str
    version: int
    static_kwargs: dict[str, Any]
    components: dict[str, TensorFlowNetwork]
    variables: dict[str, np.ndarray | float]
    module_src_sha256: str
    source: str


def read_pickle(
    data: bytes | bytearray | memoryview, source: str, *, python2: bool = False, budget: Budget | None = None
) -> Any:
    """Returns the value of a network pickle, without importing or executing anything that it names.

    Args:
        data: the file's contents.
        source: the file's name, for messages.
        python2: whether Python 2 wrote it, as it did for CIFAR-10's batches; see `Machine`.
        budget: the file's, where more is read from it.

    Returns:
        dicts (str keys; whole numbers become text), lists, tuples, sets of str, str, bytes, bool, int, float, None,
        numpy arrays (read-only), torch tensors, names of torch's types, PersistentObjects, TensorFlowNetworks. They
        take no more memory than a `Budget` allows.

    Raises:
        RefusedFileError: for any other file.
    """
    view = memoryview(data)
    budget = Budget(len(view)) if budget is None else budget
    with untrusted(source):
        check_beginning(view[:512], source)
        try:
            machine = Machine(view, python2=python2, budget=budget)
            root = machine.run()
            if machine.position != len(view):
                raise Refusal(f"{len(view) - machine.position} bytes after the end of the pickle")
            return _Interpreter(source, budget).value(root)
        except Refusal as refusal:
            raise RefusedFileError(source, refusal.found, refusal.remedy) from None


def check_beginning(head: bytes | memoryview, source: str) -> None:
    """Refuses, by its first 512 bytes, a file that is no pickle of protocol 2 to 5."""
    if not len(head):
        raise RefusedFileError(source, "an empty file", DAMAGED)
    for offset, magic, kind, remedy in _OTHER_FILES:
        if head[offset : offset + len(magic)] == magic:
            raise RefusedFileError(source, kind, remedy)
    if head[:1] != b"\x80":
        raise RefusedFileError(source, "no pickle of protocol 2 to 5")


class _Interpreter:
    """Turns the nodes of one file into values, each node once, however often the memo repeats it."""

    def __init__(self, source: str, budget: Budget) -> None:
        self.source = source
        self.budget = budget  # a value costs one, each time it is repeated, against bombs of shared nodes
        self.size = 0
        self.depth = 0
        self.done: dict[int, tuple[Any, int]] = {}  # id(node) -> value, size
        self.open: set[int] = set()
        self.hashes: dict[str, str] = {}
        self.encoded: dict[int, memoryview] = {}  # id(text) -> bytes; the node keeps the text alive
        self.storages: dict[int, Tensor] = {}  # id(bytes) -> flat tensor
        self.calls: dict[str, Callable[[Call], Any]] = {
            "persistent": self.persistent,
            "ordered_dict": self.mapping,
            "easy_dict": self.mapping,
            "container": self.container,
            "parameter": self.parameter,
            "tensor": self.tensor,
            "scalar": self.scalar,
            "array": self.array,
            "buffer": self.buffer,
            "set": self.set_,
            "tensorflow": self.tensorflow,
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
        self.budget.spend(values=size, bytes=VALUE_BYTES * size)

    def compound(self, node: Any) -> Any:
        if isinstance(node, Pairs):
            return self.dict_(node.pairs)
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if isinstance(node, tuple):
            return tuple([self.value(item) for item in node])
        if isinstance(node, Members):
            return self.strings(node.members)
        if isinstance(node, memoryview) or is_call(node, "bytes"):
            return bytes(self.copied(self.bytes_(node)))
        if isinstance(node, Call) and node.function.role in self.calls:
            return self.calls[node.function.role](node)
        if isinstance(node, Global) and node.role == "torch_dtype":
            return node.name
        raise Refusal("a global or storage where a value belongs")

    def copied(self, data: memoryview) -> memoryview:
        self.budget.spend(bytes=len(data))
        return data

    def dict_(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        result = {}
        for key, item in pairs:
            if not isinstance(key, str) and type(key) is not int:
                raise Refusal(f"a dict key of type {type(key).__name__}, not text")
            result[str(key)] = self.value(item)  # an optimizer's state counts its parameters
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
        state = self.dict_(node.state.pairs)
        return PersistentObject(_plain_class(node.function), state, "", FORMAT_VERSION, self.source)

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
        return PersistentObject(class_name, state, self.hash_of(module_src), version, self.source)

    def tensorflow(self, node: Call) -> TensorFlowNetwork:
        _arguments(node, 0)
        if not isinstance(node.state, Pairs):
            raise Refusal("a TensorFlow network whose state is no dict")
        state = self.dict_(node.state.pairs)
        version, name, static_kwargs, components, module_src, variables = map(state.get, _TENSORFLOW_KEYS)
        if type(version) is not int or version < TENSORFLOW_VERSION:
            found = f"a TensorFlow network of version {str(version)[:20]}, not {TENSORFLOW_VERSION} or later"
            raise Refusal(found, "It is older than StyleGAN2, whose networks alone can be converted.")
        if not isinstance(name, str) or not isinstance(module_src, str) or not isinstance(static_kwargs, dict):
            raise Refusal("a TensorFlow network whose name, source or arguments are of a wrong type")
        if not isinstance(components, dict) or not all(isinstance(c, TensorFlowNetwork) for c in components.values()):
            raise Refusal("a TensorFlow network whose parts are no networks")
        return TensorFlowNetwork(
            name, version, static_kwargs, components, _variables(variables), self.hash_of(module_src), self.source
        )

    def hash_of(self, module_src: str) -> str:
        if module_src not in self.hashes:
            self.budget.spend(bytes=len(module_src))
            self.hashes[module_src] = hashlib.sha256(module_src.encode()).hexdigest()
        return self.hashes[module_src]

    # Bytes, tensors, numpy.

    def bytes_(self, node: Any) -> memoryview:
        """Returns the bytes of a node that is bytes, or the latin-1 text that protocol 2 writes for them."""
        if isinstance(node, memoryview):
            return node
        if not is_call(node, "bytes") or (node.function.name == "bytes") != (node.arguments == ()):
            raise Refusal("something else where bytes belong")
        if not node.arguments:
            return memoryview(b"")
        text, encoding = _arguments(node, 2)
        if not isinstance(text, str) or encoding != "latin1":
            raise Refusal("bytes written as something else than latin-1 text")
        if id(text) not in self.encoded:
            self.budget.spend(bytes=len(text))
            try:
                self.encoded[id(text)] = memoryview(text.encode("latin1"))
            except UnicodeEncodeError:
                raise Refusal("bytes written as text that is not latin-1", DAMAGED) from None
        return self.encoded[id(text)]

    def parameter(self, node: Call) -> Tensor:
        tensor_node, requires_grad, _hooks = _arguments(node, 3)
        if not is_call(tensor_node, "tensor") or not isinstance(requires_grad, bool):
            raise Refusal("a parameter without a tensor")
        return self.value(tensor_node)

    def tensor(self, node: Call) -> Tensor:
        storage_node, offset, size, stride, requires_grad, _hooks = _arguments(node, 6)
        if not is_call(storage_node, "storage") or not isinstance(requires_grad, bool):
            raise Refusal("a tensor without a storage")
        storage = self.storage(storage_node)
        check_view(storage.numel(), offset, size, stride)
        self.budget.spend(tensors=1, bytes=TENSOR_BYTES)
        return storage.as_strided(size, stride, offset)

    def storage(self, node: Call) -> Tensor:
        """Returns the flat tensor of a storage; a stream is read once, however many tensors share it."""
        data = self.bytes_(*_arguments(node, 1))
        if id(data) not in self.storages:
            self.storages[id(data)] = read_storage(data, self.budget)
        return self.storages[id(data)]

    def scalar(self, node: Call) -> bool | int | float:
        dtype_node, data = _arguments(node, 2)
        return read_scalar(numpy_dtype(dtype_node), self.bytes_(data))

    def array(self, node: Call) -> np.ndarray:
        kind, _shape, _code = _arguments(node, 3)
        if not isinstance(kind, Global) or kind.role != "ndarray" or not isinstance(node.state, tuple):
            raise Refusal("a numpy array of an unknown kind")
        if len(node.state) != 5:
            raise Refusal("a numpy array without its contents", DAMAGED)
        _version, shape, dtype_node, fortran, data = node.state
        return read_array(shape, numpy_dtype(dtype_node), fortran, self.bytes_(data))

    def buffer(self, node: Call) -> np.ndarray:
        data, dtype_node, shape, order = _arguments(node, 4)
        if not isinstance(order, str) or order not in ("C", "F"):
            raise Refusal("a numpy array of unknown order", DAMAGED)
        return read_array(shape, numpy_dtype(dtype_node), order == "F", self.bytes_(data))


def _plain_class(function: Global) -> str:
    """The name of a plain module's class: torch.nn's by itself, R3GAN's with its module, under its newer name."""
    if function.module.startswith("torch.nn."):
        return function.name
    package, _, module = function.module.partition(".")
    if package in R3GAN_PACKAGES:
        return f"{R3GAN_PACKAGES[0]}.{module}.{function.name}"
    return f"{R3GAN_WRAPPERS[0]}.{function.name}"


def _arguments(node: Call, count: int) -> tuple[Any, ...]:
    if len(node.arguments) != count:
        raise Refusal(f"{node.function.name} with {len(node.arguments)} arguments, not {count}")
    return node.arguments


def _variables(pairs: Any) -> dict[str, np.ndarray | float]:
    """Turns a TensorFlow network's list of (name, array) pairs into a dict; numbers are arrays without axes."""
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise Refusal("a TensorFlow network whose variables are no list of pairs")
    result: dict[str, np.ndarray | float] = {}
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, np.ndarray | float | int):
            raise Refusal("a TensorFlow network with a variable that is no named array")
        if name in result:
            raise Refusal(f"a TensorFlow network with two variables {name[:80]!r}")
        result[name] = value
    return result
