"""Reads NVlabs' pickle format (their torch_utils.persistence, version 6) as inert data, and writes it.

Only this module and the parts of its reader, `pickle_machine`, `pickle_arrays` and `pickle_reader`, parse pickles.
NVlabs' own tools (torch 1.7 and later) open the files that it writes: every module is a call of
`_reconstruct_persistent_obj` on {type, version, module_src, class_name, state}, where `module_src` is the source of
its class, which the caller gives, and `state` holds the module's attributes as in torch 1.7.
"""

from __future__ import annotations

import copy
import copyreg
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import MAX_VALUES, Budget, RefusedFileError
from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.pickle_arrays import STORAGE_DTYPES, STORAGE_MAGIC, STORAGE_PROTOCOL
from stylegan_di.torch_utils.pickle_reader import (
    FORMAT_VERSION,
    PersistentObject,
    TensorFlowNetwork,
    check_beginning,
    read_pickle,
)

__all__ = [
    "Persistent",
    "PersistentModule",
    "PersistentObject",
    "RefusedFileError",
    "TensorFlowNetwork",
    "check_beginning",
    "flatten_state",
    "import_line",
    "read_pickle",
    "write_pickle",
]

_NVLABS_MODULE = "torch_utils.persistence"  # where NVlabs' tools look for `_reconstruct_persistent_obj`
_PICKLE_PROTOCOL = 4
_NAME_BYTES = 100  # of memory that a weight's name takes besides its characters
_TORCH_MODULES = (torch.nn.ModuleDict, torch.nn.ModuleList, torch.nn.Conv2d, torch.nn.Linear)
_STORAGES = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items()}
_TORCH_ATTRIBUTES = frozenset(vars(torch.nn.Module()))


class Persistent:
    """An object that remembers the arguments it was built with, as NVlabs' pickles store them.

    `_init_args` (tuple) and `_init_kwargs` (dict) are part of the file format: every pickled object's state has them.
    `_file_class` is the (module, name) of classes that are not written in NVlabs' form but as plain modules (R3GAN's).
    """

    _file_class: ClassVar[tuple[str, str] | None] = None

    _init_args: tuple[Any, ...]
    _init_kwargs: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.__dict__["_init_args"] = args
        self.__dict__["_init_kwargs"] = copy.deepcopy(kwargs)
        return self

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """A copy of the keyword arguments that this object was built with."""
        return copy.deepcopy(self._init_kwargs)


class PersistentModule(Persistent, torch.nn.Module):
    """A module that remembers the arguments it was built with."""


def flatten_state(module: PersistentObject, budget: Budget | None = None) -> OrderedDict[str, Tensor]:
    """Returns the state dict of a module read from a file: its parameters, its buffers, then its children's.

    The joined names are taken from the file's budget.

    Raises:
        RefusedFileError: if the object is not a module, or has something else in the place of a tensor.
    """
    result: OrderedDict[str, Tensor] = OrderedDict()
    _flatten(module, "", result, Budget(0, MAX_VALUES) if budget is None else budget)
    return result


def _flatten(module: PersistentObject, prefix: str, result: OrderedDict[str, Tensor], budget: Budget) -> None:
    transient = module.state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers", "_modules"):
        entries = module.state.get(group)
        if not isinstance(entries, dict):
            raise RefusedFileError(module.source, f"a {module.class_name} without {group}")
        for name, entry in entries.items():
            if entry is None or (group == "_buffers" and name in transient):
                continue
            budget.spend(values=1, bytes=4 * (len(prefix) + len(name)) + _NAME_BYTES)
            if group == "_modules" and isinstance(entry, PersistentObject):
                _flatten(entry, f"{prefix}{name}.", result, budget)
            elif group != "_modules" and isinstance(entry, Tensor):
                result[prefix + name] = entry
            else:
                where = f"{prefix}{name}"[:200]
                raise RefusedFileError(module.source, f"a {type(entry).__name__} as {where} in {group}")


def import_line(cls: type) -> str:
    """Returns the source that imports a class from where it is."""
    return f"from {cls.__module__} import {cls.__name__}\n"


def write_pickle(
    obj: Any, *, source_of: Callable[[type], str] = import_line, protocol: int = _PICKLE_PROTOCOL
) -> bytes:
    """Returns a pickle in NVlabs' format; the same tree gives the same bytes.

    Modules are written as in NVlabs' snapshots: in evaluation mode, without gradients, on the CPU, whatever their
    current mode and device. Numpy numbers become Python's; buffers that are not persistent are left out.

    Args:
        obj: a tree of dict (str keys), list, tuple, str, bytes, bool, int, float, None, Tensor, dtype, Persistent.
        source_of: returns what is written as the source of a Persistent's class.
        protocol: pickle protocol, 2 to 5.

    Raises:
        TypeError: for anything else in the tree or in a module's attributes.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, source_of, protocol).dump(_plain(obj, "the snapshot"))
    return buffer.getvalue()


def _reconstruct_persistent_obj(meta: Any) -> Any:
    """Stands for NVlabs' function of this name, which pickles refer to; this project never reads them by unpickling."""
    raise UserError(
        "This pickle holds networks in NVlabs' format, which this project does not read by pickle.load. "
        "Use stylegan_di.load_generator, load_denoiser or checkpoint.load_snapshot."
    )


class _StorageBytes:
    """The bytes of a tensor's storage, to be written into a pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data


_PythonPickler: Any = vars(pickle)["_Pickler"]  # unlike C's, it can write a function under another name


class _Pickler(_PythonPickler):
    """Python's pickler, which writes modules and tensors as NVlabs' tools and torch 1.7 do."""

    def __init__(self, file: io.BytesIO, source_of: Callable[[type], str], protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.source_of = source_of

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _reconstruct_persistent_obj:
            module, name = _NVLABS_MODULE, obj.__name__
        elif isinstance(obj, torch.dtype):
            module, _, name = str(obj).partition(".")
        elif isinstance(obj, type) and issubclass(obj, Persistent) and obj._file_class is not None:
            module, name = obj._file_class
        else:
            super().save_global(obj, name)
            return
        if self.proto >= 4:
            self.save(sys.intern(module))
            self.save(sys.intern(name))
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)

    def reducer_override(self, obj: Any) -> Any:
        if obj is _reconstruct_persistent_obj:
            return obj.__name__  # for `save_global`
        if isinstance(obj, _TORCH_MODULES) or (isinstance(obj, PersistentModule) and obj._file_class is not None):
            return copyreg.__newobj__, (type(obj),), _module_state(obj)  # type: ignore[attr-defined]
        if isinstance(obj, Persistent):
            return _reconstruct_persistent_obj, (self.meta(obj),)
        if isinstance(obj, torch.nn.Parameter):
            return torch._utils._rebuild_parameter, (obj.detach(), False, OrderedDict())
        if isinstance(obj, Tensor):
            plain = obj.detach().cpu().contiguous()
            storage = _StorageBytes(_storage_stream(plain))
            layout: tuple[Any, ...] = (storage, 0, tuple(plain.shape), tuple(plain.stride()), False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, layout
        if isinstance(obj, _StorageBytes):
            return torch.storage._load_from_bytes, (obj.data,)
        return NotImplemented

    def meta(self, obj: Persistent) -> dict[str, Any]:
        return {
            "type": "class",
            "version": FORMAT_VERSION,
            "module_src": sys.intern(self.source_of(type(obj))),
            "class_name": sys.intern(type(obj).__name__),
            "state": _module_state(obj) if isinstance(obj, torch.nn.Module) else _attributes(obj),
        }


def _module_state(module: torch.nn.Module) -> dict[str, Any]:
    """Returns a module's __dict__ as in torch 1.7: the entries of every module, its own attributes, its arguments."""
    transient = module._non_persistent_buffers_set
    state: dict[str, Any] = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict((name, b) for name, b in module._buffers.items() if name not in transient),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
        "_state_dict_hooks": OrderedDict(),
        "_load_state_dict_pre_hooks": OrderedDict(),
        "_modules": OrderedDict((sys.intern(name), child) for name, child in module._modules.items()),
    }
    return state | _attributes(module)


def _attributes(obj: object) -> dict[str, Any]:
    """Returns the attributes that torch does not give every module: the object's own ones, then its arguments."""
    where = type(obj).__name__
    last = ("_init_args", "_init_kwargs")
    own = [name for name in vars(obj) if name not in _TORCH_ATTRIBUTES and name not in last]
    plain = isinstance(obj, Persistent) and obj._file_class is not None
    names = [*own, *(name for name in last if name in vars(obj) and not plain)]
    return {name: _plain(getattr(obj, name), f"{where}.{name}") for name in names}


def _plain(value: Any, where: str) -> Any:
    """Converts numbers to Python's and interns equal strings, so that the bytes do not depend on object identity."""
    if value is None or isinstance(value, bool | bytes | Tensor | Persistent | torch.dtype):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), where)
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, tuple):
        return tuple([_plain(item, where) for item in value])
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(f"{where}: a {type(value).__name__} cannot be written to a network pickle")


class _StoragePickler(pickle.Pickler):
    """Writes a legacy torch stream, whose only tuple is the reference to the storage."""

    def persistent_id(self, obj: Any) -> Any:
        return obj if isinstance(obj, tuple) else None


def _storage_stream(tensor: Tensor) -> bytes:
    """Returns the legacy torch stream of a contiguous tensor's storage, as torch.save wrote it before 1.6."""
    if tensor.dtype not in _STORAGES:
        raise TypeError(f"a tensor of {tensor.dtype} cannot be written to a network pickle")
    system = {
        "protocol_version": STORAGE_PROTOCOL,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    reference = ("storage", _STORAGES[tensor.dtype], "0", "cpu", tensor.numel(), None)
    stream = io.BytesIO()
    for part in (STORAGE_MAGIC, STORAGE_PROTOCOL, system, reference, ["0"]):
        _StoragePickler(stream, protocol=2).dump(part)
    stream.write(tensor.numel().to_bytes(8, "little"))
    stream.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return stream.getvalue()
