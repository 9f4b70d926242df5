"""Turns pickle opcodes, protocols 2 to 5, into inert nodes: the first half of reading a network file as data.

The machine keeps a stack and a memo as the pickle format prescribes, but when a pickle names a class or calls a
function, it only records that: it imports and calls nothing. It refuses what no network file needs: every global
outside `KNOWN_GLOBALS`, and every opcode not in the table at the end. Its cost is taken from the file's budget.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stylegan_di.dnnlib.untrusted import DAMAGED, NOT_A_NETWORK, Budget

STEP_BYTES = 100  # of memory that a step takes; a call takes CALL_BYTES more
CALL_BYTES = 500
MAX_MARKS = 100  # nested MARKs
MAX_INT_BYTES = 16

# R3GAN's modules are plain ones. These packages and modules are two names of the same.
R3GAN_PACKAGES = ("R3GAN", "BaselineGAN")
R3GAN_WRAPPERS = ("training.networks", "training.networks_baseline")
_R3GAN_CLASSES = {
    ".Networks": "Generator Discriminator GeneratorStage DiscriminatorStage GenerativeBasis DiscriminativeBasis "
                 "UpsampleLayer DownsampleLayer ResidualBlock Convolution",
    ".FusedOperators": "BiasedActivationCUDA",
    ".Resamplers": "InterpolativeUpsamplerCUDA InterpolativeDownsamplerCUDA",
}  # fmt: skip

# (module, name) -> role: the only names that a network file may contain. numpy 2 renamed numpy.core to numpy._core; up
# to protocol 3 an empty set is written as a call of the built-in type (of `__builtin__` in protocol 2); protocol 2 has
# no bytes and writes them as text to be encoded; protocol 5 writes numpy arrays as buffers.
KNOWN_GLOBALS: dict[tuple[str, str], str] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): "persistent",
    ("collections", "OrderedDict"): "ordered_dict",
    ("dnnlib.util", "EasyDict"): "easy_dict",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch.storage", "_load_from_bytes"): "storage",
    ("torch.nn.modules.container", "ModuleDict"): "container",
    ("torch.nn.modules.container", "ModuleList"): "container",
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("builtins", "set"): "set",
    ("__builtin__", "set"): "set",
    ("_codecs", "encode"): "bytes",
    ("__builtin__", "bytes"): "bytes",
    ("dnnlib.tflib.network", "Network"): "tensorflow",
    ("torch.nn.modules.conv", "Conv2d"): "container",
    ("torch.nn.modules.linear", "Linear"): "container",
    ("torch", "float32"): "torch_dtype",
    ("torch", "float16"): "torch_dtype",
    ("torch", "bfloat16"): "torch_dtype",
    **{(module, name): "container" for module in R3GAN_WRAPPERS for name in ("Generator", "Discriminator")},
    **{(package + module, name): "container"
       for package in R3GAN_PACKAGES for module, names in _R3GAN_CLASSES.items() for name in names.split()},
}  # fmt: skip

_CALLED = {
    "persistent", "ordered_dict", "parameter", "tensor", "storage", "dtype", "scalar", "array", "buffer", "set",
    "bytes", "state_dict",
}  # fmt: skip
_CREATED = {"easy_dict", "container", "tensorflow"}
_FILLED = {"ordered_dict", "easy_dict", "state_dict"}
_BUILT = {"dtype", "array", "container", "tensorflow", "state_dict"}
_OPCODE_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}


class Refusal(Exception):
    """Says what was found in a file and what to do about it; the reader adds the file's name."""

    def __init__(self, found: str, remedy: str = NOT_A_NETWORK) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


@dataclass(eq=False)
class Global:
    """A name from KNOWN_GLOBALS, which is never looked up."""

    module: str
    name: str
    role: str


@dataclass(eq=False)
class Call:
    """A call that is recorded but not made: the function, its arguments, and the items and state set on the result."""

    function: Global
    arguments: tuple[Any, ...]
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(eq=False)
class Pairs:
    """A dict whose keys are not hashed yet."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Members:
    """A set whose members are not hashed yet."""

    members: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class PersistentId:
    """A reference to something outside the pickle: the storage of a legacy torch stream."""

    value: Any


class Machine:
    """Runs one pickle stream of `data` from `position`; `run` returns its root node.

    Args:
        data: the whole file, or the nested stream.
        position: where the stream begins; after `run`, where it ended.
        budget: the file's; a step costs one value, and a text its bytes.
        known: maps the globals that the stream may name to their roles.
        allow_persistent_ids: whether the stream may refer to storages, as nested streams do.
        python2: whether Python 2 wrote the stream: then its strings are read too, those shorter than 256 bytes as text
            and others as bytes, and its memo begins at 1.
    """

    def __init__(
        self,
        data: memoryview,
        position: int = 0,
        *,
        budget: Budget,
        known: Mapping[tuple[str, str], str] = KNOWN_GLOBALS,
        allow_persistent_ids: bool = False,
        python2: bool = False,
    ) -> None:
        self.data = data
        self.start = self.position = position
        self.known = known
        self.budget = budget
        self.allow_persistent_ids = allow_persistent_ids
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = [None] if python2 else []
        self.steps = _STEPS | _PYTHON2_STEPS if python2 else _STEPS

    def run(self) -> Any:
        if self.data[self.start : self.start + 1] != b"\x80":
            raise Refusal("no pickle of protocol 2 to 5")
        while True:
            code = self.take(1)[0]
            self.budget.spend(values=1, bytes=STEP_BYTES)
            if code == _STOP:
                break
            step = self.steps.get(code)
            if step is None:
                raise Refusal(f"pickle opcode {_OPCODE_NAMES.get(code, hex(code))} at byte {self.position - 1}")
            step(self)
        root = self.pop()
        if self.stack or self.marks:
            raise Refusal(f"a pickle with {len(self.stack)} left-over values", DAMAGED)
        return root

    # Reading.

    def take(self, count: int) -> memoryview:
        """Returns the next bytes; refuses a file that ends before them."""
        end = self.position + count
        if end > len(self.data):
            raise Refusal(f"the end of the file after {len(self.data)} bytes, in the middle of a value", DAMAGED)
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def unpack(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def take_text(self, form: struct.Struct) -> str:
        """Returns a UTF-8 text that its length precedes."""
        text = _decode(self.take(self.unpack(form)))
        self.budget.spend(bytes=sys.getsizeof(text))
        return text

    def take_line(self) -> str:
        """Returns a text argument of GLOBAL, which ends at a newline; names of 256 bytes or more are refused."""
        line = bytes(self.data[self.position : self.position + 256])
        end = line.find(b"\n")
        if end < 0:
            raise Refusal("a global whose name does not end")
        self.position += end + 1
        return _decode(line[:end])

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refusal(f"a pickle that takes from an empty stack at byte {self.position}", DAMAGED)
        return self.stack.pop()

    def popped(self, count: int) -> list[Any]:
        """Returns the topmost values, the last one last."""
        return [self.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise Refusal(f"a pickle that misses a MARK at byte {self.position}", DAMAGED)
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    # Opcodes.

    def proto(self) -> None:
        protocol = self.unpack(_UINT8)
        if self.position != self.start + 2 or not 2 <= protocol <= 5:
            raise Refusal(f"pickle protocol {protocol} at byte {self.position - 2}, not 2 to 5 at the beginning")

    def frame(self) -> None:
        if self.unpack(_UINT64) > len(self.data) - self.position:
            raise Refusal("a pickle frame that goes beyond the end of the file", DAMAGED)

    def mark(self) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise Refusal(f"more than {MAX_MARKS} nested pickle MARKs")
        self.marks.append(len(self.stack))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refusal("a global whose name is no text")
        self.push(self.known_global(module, name))

    def known_global(self, module: str, name: str) -> Global:
        role = self.known.get((module, name))
        if role is None:
            raise Refusal(f"the global {module[:80]!r} {name[:80]!r}, which no network needs and which could run code")
        return Global(module, name, role)

    def call(self, roles: set[str]) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or function.role not in roles or not isinstance(arguments, tuple):
            raise Refusal(f"a call of something that is not called in network files, at byte {self.position - 1}")
        self.budget.spend(bytes=CALL_BYTES)
        self.push(Call(function, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call) or target.function.role not in _BUILT or target.state is not None:
            raise Refusal(f"a BUILD of something that has no state, at byte {self.position - 1}")
        target.state = state

    def setitems(self, values: list[Any]) -> None:
        self.pairs_of_top().extend(_paired(values))

    def pairs_of_top(self) -> list[tuple[Any, Any]]:
        target = self.top()
        if isinstance(target, Pairs) or (isinstance(target, Call) and target.function.role in _FILLED):
            return target.pairs
        raise Refusal(f"SETITEM on something that is no dict, at byte {self.position - 1}")

    def extend(self, kind: type, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, kind):
            raise Refusal(f"items added to something that cannot hold them, at byte {self.position - 1}")
        items: Any = target.members if isinstance(target, Members) else target
        items.extend(values)

    def integer(self, count: int) -> None:
        if count > MAX_INT_BYTES:
            raise Refusal(f"an integer of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def memoize(self) -> None:
        self.memo.append(self.top())

    def put(self, index: int) -> None:
        if index < len(self.memo):
            self.memo[index] = self.top()
        elif index == len(self.memo):
            self.memo.append(self.top())
        else:
            raise Refusal(f"memo index {index} after {len(self.memo)} entries")

    def get(self, index: int) -> None:
        if index >= len(self.memo):
            raise Refusal(f"memo index {index} of {len(self.memo)} entries", DAMAGED)
        self.push(self.memo[index])

    def binpersid(self) -> None:
        if not self.allow_persistent_ids:
            raise Refusal("a reference out of the pickle (BINPERSID)")
        self.push(PersistentId(self.pop()))


def _paired(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise Refusal("a dict with a key that has no value", DAMAGED)
    return list(zip(values[::2], values[1::2], strict=True))


def _decode(data: bytes | memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Refusal("a text that is not UTF-8", DAMAGED) from None


_UINT8, _UINT16, _UINT32, _UINT64 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_INT32, _FLOAT64 = struct.Struct("<i"), struct.Struct(">d")
_STOP = ord(".")

_STEPS_BY_NAME: dict[str, Callable[[Machine], None]] = {
    "PROTO": Machine.proto,
    "FRAME": Machine.frame,
    "MARK": Machine.mark,
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "BININT": lambda m: m.push(m.unpack(_INT32)),
    "BININT1": lambda m: m.push(m.unpack(_UINT8)),
    "BININT2": lambda m: m.push(m.unpack(_UINT16)),
    "LONG1": lambda m: m.integer(m.unpack(_UINT8)),
    "LONG4": lambda m: m.integer(m.unpack(_UINT32)),
    "BINFLOAT": lambda m: m.push(m.unpack(_FLOAT64)),
    "SHORT_BINUNICODE": lambda m: m.push(m.take_text(_UINT8)),
    "BINUNICODE": lambda m: m.push(m.take_text(_UINT32)),
    "BINUNICODE8": lambda m: m.push(m.take_text(_UINT64)),
    "SHORT_BINBYTES": lambda m: m.push(m.take(m.unpack(_UINT8))),
    "BINBYTES": lambda m: m.push(m.take(m.unpack(_UINT32))),
    "BINBYTES8": lambda m: m.push(m.take(m.unpack(_UINT64))),
    "BYTEARRAY8": lambda m: m.push(m.take(m.unpack(_UINT64))),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "TUPLE1": lambda m: m.push(tuple(m.popped(1))),
    "TUPLE2": lambda m: m.push(tuple(m.popped(2))),
    "TUPLE3": lambda m: m.push(tuple(m.popped(3))),
    "TUPLE": lambda m: m.push(tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m: m.push([]),
    "LIST": lambda m: m.push(m.pop_to_mark()),
    "APPEND": lambda m: m.extend(list, m.popped(1)),
    "APPENDS": lambda m: m.extend(list, m.pop_to_mark()),
    "EMPTY_DICT": lambda m: m.push(Pairs()),
    "DICT": lambda m: m.push(Pairs(_paired(m.pop_to_mark()))),
    "SETITEM": lambda m: m.setitems(m.popped(2)),
    "SETITEMS": lambda m: m.setitems(m.pop_to_mark()),
    "EMPTY_SET": lambda m: m.push(Members()),
    "ADDITEMS": lambda m: m.extend(Members, m.pop_to_mark()),
    "GLOBAL": lambda m: m.push(m.known_global(m.take_line(), m.take_line())),
    "STACK_GLOBAL": Machine.stack_global,
    "REDUCE": lambda m: m.call(_CALLED),
    "NEWOBJ": lambda m: m.call(_CREATED),
    "BUILD": Machine.build,
    "MEMOIZE": Machine.memoize,
    "BINPUT": lambda m: m.put(m.unpack(_UINT8)),
    "LONG_BINPUT": lambda m: m.put(m.unpack(_UINT32)),
    "BINGET": lambda m: m.get(m.unpack(_UINT8)),
    "LONG_BINGET": lambda m: m.get(m.unpack(_UINT32)),
    "BINPERSID": Machine.binpersid,
}
_STEPS = {code: _STEPS_BY_NAME[name] for code, name in _OPCODE_NAMES.items() if name in _STEPS_BY_NAME}
_PYTHON2_STEPS: dict[int, Callable[[Machine], None]] = {
    ord("U"): lambda m: m.push(m.take_text(_UINT8)),  # SHORT_BINSTRING
    ord("T"): lambda m: m.push(m.take(m.unpack(_UINT32))),  # BINSTRING
}
