"""The pickle reader takes a network file as data and refuses all else; what is written is read back exactly."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import itertools
import json
import pickle
import pickletools
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.persistence import (
    PersistentModule,
    PersistentObject,
    RefusedFileError,
    TensorFlowNetwork,
    flatten_state,
    read_pickle,
    write_pickle,
)
from stylegan_di.torch_utils.pickle_machine import KNOWN_GLOBALS

GOLDEN = Path(__file__).parent / "golden"
PICKLES = ["sg2-uncond", "sg2-cond", "edm-cond", "edm-uncond"]


class Layer(PersistentModule):
    def __init__(self, features: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = np.sqrt(np.float64(gain))
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, features * 3).reshape(features, 3))
        self.register_parameter("bias", None)
        self.register_buffer("steps", torch.arange(features))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


class Net(PersistentModule):
    def __init__(self, *, widths: list[int], name: str) -> None:
        super().__init__()
        self.name = name
        self.size = (2, 3)
        self.enc = torch.nn.ModuleDict({f"l{i}": Layer(width, gain=0.5) for i, width in enumerate(widths)})
        self.last = torch.nn.Parameter(torch.ones(2, 2, 3, 3).contiguous(memory_format=torch.channels_last))


def net() -> Net:
    return Net(widths=[2, 3], name="lrelu")


def refused(data: bytes) -> str:
    with pytest.raises(RefusedFileError) as caught:
        read_pickle(data, "some.pkl")
    message = str(caught.value)
    assert message.startswith("some.pkl: found ")
    assert message.endswith(".")
    return message


# Reading what NVlabs' training loops write.


@pytest.mark.parametrize("name", PICKLES)
def test_golden_files_read_as_data(name: str) -> None:
    content = read_pickle((GOLDEN / f"pickles/{name}.pkl").read_bytes(), name)
    expected = json.loads((GOLDEN / f"pickles/{name}.expected.json").read_text())
    assert list(content) == expected["keys"]
    tensors = expected["tensors"] if "G" in expected["tensors"] else {"ema": expected["tensors"]}
    arguments = expected["init_kwargs"] if "G" in expected["init_kwargs"] else {"ema": expected["init_kwargs"]}
    for network, entries in tensors.items():
        module = content[network]
        assert isinstance(module, PersistentObject)
        assert module.version == 6
        assert len(module.module_src_sha256) == 64
        assert module.state["_init_kwargs"] == arguments[network]
        state = flatten_state(module)
        assert list(state) == list(entries)
        for key, entry in entries.items():
            value = state[key].double()
            assert list(value.shape) == entry["shape"]
            assert float(value.sum()) == pytest.approx(entry["sum"], abs=1e-9)
            assert float(value.norm()) == pytest.approx(entry["l2"], rel=1e-9)


def test_reading_is_quick() -> None:
    data = (GOLDEN / "pickles/edm-cond.pkl").read_bytes()
    start = time.process_time()
    read_pickle(data, "edm-cond.pkl")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol(protocol: int) -> None:
    tree = {
        "a": [1, -1, 300, 70000, 2**40, True, False, None, 1.5, "text", "ü" * 300],
        "b": {"c": (), "d": (1,), "e": (1, 2), "f": (1, 2, 3), "g": (1, 2, 3, 4)},
        "h": OrderedDict(x=1, y=[2]),
        "set": set(),
        "shared": [[7]] * 2,
    }
    read = read_pickle(pickle.dumps(tree, protocol), "some.pkl")
    assert read == tree
    assert type(read["a"][5]) is bool


@pytest.mark.parametrize("protocol", [3, 4])
def test_numpy_numbers_become_pythons(protocol: int) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    numbers = {"gain": np.float64(1.5), "count": np.int64(3), "flag": np.bool_(True)}
    tree = numbers | {"c": array, "f": np.asfortranarray(array)}
    read = read_pickle(pickle.dumps(tree, protocol), "some.pkl")
    assert [type(read[key]) for key in ("gain", "count", "flag")] == [float, int, bool]
    assert (read["gain"], read["count"], read["flag"]) == (1.5, 3, True)
    np.testing.assert_array_equal(read["c"], array)
    np.testing.assert_array_equal(read["f"], array)


def test_tensorflow_era_networks_read_as_data() -> None:
    triple = read_pickle((GOLDEN / "pickles/tf-legacy-synthetic-skip.pkl").read_bytes(), "some.pkl")
    assert all(isinstance(network, TensorFlowNetwork) for network in triple)
    assert [network.name for network in triple] == ["G", "D", "G"]
    generator = triple[0]
    assert (generator.version, generator.static_kwargs["latent_size"]) == (5, 12)
    assert set(generator.components) == {"mapping", "synthesis"}
    constant = generator.components["synthesis"].variables["4x4/Const/const"]
    assert constant.shape[2:] == (4, 4)
    source = b'raise RuntimeError("embedded TF source must never run")'
    assert generator.module_src_sha256 == hashlib.sha256(source).hexdigest()


# Refusals.

PERSISTENT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
HOSTILE = {
    "os.system": (b"cos\nsystem\n\x8c\x04true\x85R.", "'os' 'system'"),
    "exec": (b"cbuiltins\nexec\n\x8c\x04pass\x85R.", "'builtins' 'exec'"),
    "getattr": (b"cbuiltins\ngetattr\n\x8c\x01a\x8c\x01b\x86R.", "'builtins' 'getattr'"),
    "hub loader": (b"ctorch.hub\nload\n\x8c\x01a\x85R.", "'torch.hub' 'load'"),
    "dotted name": (b"ccollections\nOrderedDict.update\n)R.", "'OrderedDict.update'"),
    "stack dotted name": (b"\x8c\x0bcollections\x8c\x12OrderedDict.update\x93)R.", "'OrderedDict.update'"),
    "storage class outside": (b"ctorch\nFloatStorage\n.", "'torch' 'FloatStorage'"),
    "unending global": (b"c" + b"a" * 1000, "does not end"),
    "INST": (b"(ios\nsystem\n.", "INST"),
    "OBJ": (b"(" + PERSISTENT + b"o.", "OBJ"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "EXT4"),
    "NEWOBJ_EX": (b"cdnnlib.util\nEasyDict\n)}\x92.", "NEWOBJ_EX"),
    "NEWOBJ of a function": (PERSISTENT + b")\x81.", "call"),
    "REDUCE of a class": (b"cdnnlib.util\nEasyDict\n)R.", "call"),
    "REDUCE of a value": (b"\x8c\x01a)R.", "call"),
    "next buffer": (b"\x97.", "NEXT_BUFFER"),
    "persistent id": (b"\x8c\x01aQ.", "BINPERSID"),
    "text opcodes": (b"I1\n.", "opcode INT"),
    "unknown opcode": (b"\xff.", "0xff"),
    "million marks": (b"(" * 1_000_000 + b".", "MARK"),
    "million values": (b"(" + b"N" * 1_000_000 + b"l.", "far more values"),
    "deep tuples": (b")" + b"\x85" * 10_000 + b".", "nested deeper"),
    "contains itself": (b"]\x94h\x00a.", "contains itself"),
    "sparse memo": (b"Nr\xff\xff\xff\x7f.", "memo index 2147483647"),
    "memo without entry": (b"h\x07.", "memo index 7"),
    "BUILD on a dict": (b"}}b.", "BUILD"),
    "BUILD on OrderedDict": (b"ccollections\nOrderedDict\n)R}b.", "BUILD"),
    "BUILD of slot state": (b"ctorch.nn.modules.container\nModuleDict\n)\x81N}\x86b.", "state is no dict"),
    "BUILD twice": (b"ctorch.nn.modules.container\nModuleDict\n)\x81}b}b.", "BUILD"),
    "SETITEM on a list": (b"]NNs.", "SETITEM"),
    "APPEND on a dict": (b"}Na.", "cannot hold"),
    "ADDITEMS on a list": (b"](N\x90.", "cannot hold"),
    "bare global": (PERSISTENT + b".", "where a value belongs"),
    "key that is no text": (b"}NNs.", "dict key of type NoneType"),
    "key without value": (b"}(\x8c\x01au.", "no value"),
    "left-over values": (b"NN.", "left-over"),
    "empty stack": (b".", "empty stack"),
    "no mark": (b"t.", "MARK"),
    "second stream": (b"N.\x80\x04N.", "4 bytes after the end"),
    "second PROTO": (b"N\x80\x04.", "protocol 4 at byte"),
    "cut short": (b"\x8c\x64abc", "the end of the file"),
    "huge length": (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "the end of the file"),
    "huge frame": (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "frame"),
    "huge integer": (b"\x8b\x00\x00\x10\x00" + b"\x01" * 0x100000 + b".", "integer of 1048576 bytes"),
    "no UTF-8": (b"\x8c\x01\xff.", "UTF-8"),
    "no meta": (PERSISTENT + b"}\x85R.", "without the entries"),
    "two arguments": (PERSISTENT + b"NN\x86R.", "2 arguments, not 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case: str) -> None:
    body, found = HOSTILE[case]
    start = time.process_time()
    assert found in refused(b"\x80\x04" + body)
    assert time.process_time() - start < 1


def test_bomb_of_shared_values_is_refused() -> None:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    assert "far more values" in refused(pickle.dumps(value))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty file"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z"),
        (b"PK\x03\x04", "zip"),
        (b"name" + bytes(253) + b"ustar\x0000", "tar"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x06N.", "protocol 6"),
        (b"(lp0\n.", "no pickle"),
    ],
)
def test_other_files_are_named(data: bytes, found: str) -> None:
    assert found in refused(data)


@pytest.mark.parametrize("name", ["sg2-uncond", "edm-cond"])
def test_truncated_anywhere(name: str) -> None:
    data = (GOLDEN / f"pickles/{name}.pkl").read_bytes()
    for end in np.random.default_rng(0).integers(1, len(data), 40):
        refused(data[:end])


class Reduced:
    """Pickles as a call with chosen arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def storage(**changes: Any) -> bytes:
    """A legacy torch stream of the numbers 0..11, with chosen parts changed."""
    data = write_pickle({"t": torch.arange(12, dtype=torch.float32)})
    stream = next(argument for opcode, argument, _ in pickletools.genops(data) if "BINBYTES" in opcode.name)
    for old, new in changes.get("replace", {}).items():
        assert old in stream
        stream = stream.replace(old, new)
    return stream[: changes.get("end")] + changes.get("suffix", b"")


def tensor(size: Any = (3, 4), stride: Any = (4, 1), offset: Any = 0, stream: bytes | None = None) -> bytes:
    stored = Reduced(torch.storage._load_from_bytes, storage() if stream is None else stream)
    return pickle.dumps(Reduced(torch._utils._rebuild_tensor_v2, stored, offset, size, stride, False, OrderedDict()))


@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((3, 4), (4, 1), 0, torch.arange(12.0).reshape(3, 4)),
        ((3, 4), (1, 3), 0, torch.arange(12.0).reshape(4, 3).T),
        ((2, 2), (4, 1), 2, torch.tensor([[2.0, 3.0], [6.0, 7.0]])),
        ((2,), (10,), 1, torch.tensor([1.0, 11.0])),
        ((), (), 11, torch.tensor(11.0)),
        ((1, 2), (0, 1), 0, torch.tensor([[0.0, 1.0]])),
        ((0, 4), (4, 1), 0, torch.empty(0, 4)),
    ],
)
def test_tensor_layout_is_honoured(size: Any, stride: Any, offset: int, expected: torch.Tensor) -> None:
    read = read_pickle(tensor(size, stride, offset), "some.pkl")
    torch.testing.assert_close(read, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "stride", "offset", "found"),
    [
        ((3, 4), (5, 1), 0, "beyond its storage"),
        ((3, 4), (4, 1), 1, "beyond its storage"),
        ((13,), (1,), 0, "beyond its storage"),
        ((), (), 12, "beyond its storage"),
        ((1 << 40,), (0,), 0, "zero or overlap"),
        ((3, 3), (1, 1), 0, "zero or overlap"),
        ((3, 4), (3, 1), 0, "zero or overlap"),
        ((3,), (-1,), 3, "no whole number"),
        ((-3,), (1,), 3, "no whole number"),
        ((3,), (1,), -1, "no whole number"),
        ((3.0,), (1,), 0, "no whole number"),
        ((3,), (1, 1), 0, "1 sizes and 2 strides"),
        ((1,) * 17, (1,) * 17, 0, "17 sizes"),
        ((0, 1 << 40, 1 << 40), (1, 1, 1), 0, "impossible size"),
    ],
)
def test_tensor_outside_its_storage_is_refused(size: Any, stride: Any, offset: Any, found: str) -> None:
    assert found in refused(tensor(size, stride, offset))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"end": -1}, "12 numbers in 47 bytes"),
        ({"suffix": b"\0"}, "12 numbers in 49 bytes"),
        ({"suffix": b"\x80\x02N."}, "12 numbers in 52 bytes"),
        ({"replace": {b"K\x0cN": b"K\x0dN"}}, "13 numbers"),
        ({"replace": {b"ctorch\nFloatStorage\n": b"cos\nsystem\n"}}, "'os' 'system'"),
        ({"replace": {b"ctorch\nFloatStorage\n": b"ctorch\nDoubleStorage\n"}}, "float64"),
        ({"replace": {b"M\xe9\x03.": b"M\xe8\x03."}}, "no torch stream"),
        ({"replace": {b"little_endian": b"little_endiaN"}}, "big-endian"),
        ({"replace": {b"storage": b"storagE"}}, "without a plain storage"),
        ({"replace": {b"]q\x00X\x01\x00\x00\x000": b"]q\x00X\x01\x00\x00\x001"}}, "other keys"),
        ({"end": 30}, "the end of the file"),
    ],
)
def test_altered_storage_is_refused(changes: dict[str, Any], found: str) -> None:
    assert found in refused(tensor(stream=storage(**changes)))


def test_object_numbers_are_refused() -> None:
    dtype, scalar = np.dtype("O"), type(np.float64(0).__reduce__()[0])
    assert scalar is not None
    function = np.float64(0).__reduce__()[0]
    assert "numpy value" in refused(pickle.dumps(Reduced(function, dtype, b"01234567")))
    assert "wrong length" in refused(pickle.dumps(Reduced(function, np.dtype("f8"), b"0123456")))
    assert "numpy value" in refused(pickle.dumps(np.array([None])))


def test_another_version_is_refused() -> None:
    data = write_pickle({"ema": net()})
    at = data.index(b"version") + len("version")
    at = data.index(b"K\x06", at)
    message = refused(data[:at] + b"K\x05" + data[at + 2 :])
    assert "another version than 6" in message


def test_edited_source_loads_as_data_and_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w')"
    data = write_pickle({"ema": net()}, source_of=lambda cls: source)
    read = read_pickle(data, "some.pkl")["ema"]
    assert list(flatten_state(read)) == list(net().state_dict())
    assert not mark.exists()


def test_module_that_holds_something_else_is_refused() -> None:
    for group, entry in (("_parameters", 1), ("_modules", 1), ("_modules", torch.zeros(1)), ("_buffers", "x")):
        state = {"_parameters": {}, "_buffers": {}, "_modules": {}} | {group: {"a": entry}}
        with pytest.raises(RefusedFileError, match=f" as a in {group}"):
            flatten_state(PersistentObject("Net", state, "", 6, "some.pkl"))
    with pytest.raises(RefusedFileError, match="without _parameters"):
        flatten_state(PersistentObject("Net", {}, "", 6, "some.pkl"))


# Writing.


def test_written_files_read_back_exactly() -> None:
    original = net()
    read = read_pickle(write_pickle({"ema": original, "kimg": np.float64(1.5)}), "some.pkl")
    assert read["kimg"] == 1.5
    module = read["ema"]
    assert module.class_name == "Net"
    assert module.state["_init_kwargs"] == {"widths": [2, 3], "name": "lrelu"}
    assert (module.state["training"], module.state["name"], module.state["size"]) == (False, "lrelu", (2, 3))
    layer = module.state["_modules"]["enc"].state["_modules"]["l1"]
    assert (layer.class_name, layer.state["_init_args"], layer.state["_init_kwargs"]) == ("Layer", (3,), {"gain": 0.5})
    assert type(layer.state["gain"]) is float
    assert "scratch" not in layer.state["_buffers"]
    for (key, value), (name, expected) in zip(
        flatten_state(module).items(), original.state_dict().items(), strict=True
    ):
        assert key == name
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_bytes_depend_on_values_only() -> None:
    first, second = net(), copy.deepcopy(net())
    second.name = "".join(["lre", "lu"])
    second.train().requires_grad_(False)
    assert write_pickle({"ema": first}) == write_pickle({"ema": second})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_every_type_of_tensor(dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(2, 3).to(dtype)
    torch.testing.assert_close(read_pickle(write_pickle({"t": value}), "some.pkl")["t"], value, rtol=0, atol=0)


def test_modules_are_written_with_the_keys_of_torch_1_7() -> None:
    state = read_pickle(write_pickle(net()), "some.pkl").state
    assert list(state) == [
        "training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks", "_forward_hooks",
        "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_modules", "name", "size",
        "_init_args", "_init_kwargs",
    ]  # fmt: skip


class NVlabsLikeUnpickler(pickle.Unpickler):
    """Python's unpickler, with the format document's account of how NVlabs rebuild an object (minus running source)."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.found: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.found.add(f"{module} {name}")
        if (module, name) != ("torch_utils.persistence", "_reconstruct_persistent_obj"):
            return super().find_class(module, name)
        return self.rebuild

    @staticmethod
    def rebuild(meta: dict[str, Any]) -> Any:
        assert list(meta) == ["type", "version", "module_src", "class_name", "state"]
        assert (meta["type"], meta["version"]) == ("class", 6)
        assert meta["module_src"] == f"from {__name__} import {meta['class_name']}\n"
        module = torch.nn.Module.__new__({"Net": Net, "Layer": Layer}[meta["class_name"]])
        module.__setstate__(meta["state"])
        return module


def test_torch_itself_rebuilds_what_is_written() -> None:
    original = net()
    rebuilt = NVlabsLikeUnpickler(write_pickle({"ema": original})).load()["ema"]
    assert not rebuilt.training
    assert not any(parameter.requires_grad for parameter in rebuilt.parameters())
    assert list(rebuilt.state_dict()) == list(original.state_dict())
    for value, expected in zip(rebuilt.state_dict().values(), original.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert rebuilt.to(torch.float64).last.dtype == torch.float64


def structure(name: str) -> tuple[set[str], list[str]]:
    """Of a golden file, from its recorded structure: the globals in it, and the tree of its content, line by line."""
    with gzip.open(GOLDEN / f"format/structure-{name}.txt.gz", "rt") as file:
        text = file.read()
    names = text.split("GLOBALS", 1)[1].split("REDUCE callables")[0].splitlines()[1:]
    tree = [line.strip() for line in text.splitlines()]
    return {line.strip().rsplit(" ", 1)[0] for line in names if line.strip()}, tree


def test_written_globals_are_those_of_nvlabs() -> None:
    unpickler = NVlabsLikeUnpickler(write_pickle({"ema": net()}))
    unpickler.load()
    theirs, _ = structure("edm-cond")
    assert unpickler.found == {name for name in theirs if not name.startswith("numpy")}


@pytest.mark.parametrize("name", ["edm-cond", "sg2-cond", "tf-legacy-synthetic-skip"])
def test_golden_files_need_known_globals_only(name: str) -> None:
    theirs, _ = structure(name)
    assert theirs <= {" ".join(pair) for pair in KNOWN_GLOBALS}


@pytest.mark.parametrize("name", ["edm-cond", "sg2-cond"])
def test_objects_are_read_in_the_order_recorded(name: str) -> None:
    """Every object, with its class and the number of its attributes."""
    _, tree = structure(name)
    expected = [
        (line.split("'")[3], int(after.split("[")[1].rstrip("]")))
        for line, after in itertools.pairwise(tree)
        if line.startswith("'class_name'") and after.startswith("'state'")
    ]
    found: list[tuple[str, int]] = []

    def visit(value: Any) -> None:
        if isinstance(value, PersistentObject):
            if value.module_src_sha256:  # torch's own containers carry no source
                found.append((value.class_name, len(value.state)))
            visit(value.state)
        elif isinstance(value, dict):
            for part in value.values():
                visit(part)

    visit(read_pickle((GOLDEN / f"pickles/{name}.pkl").read_bytes(), name))
    assert found == expected
    assert len(found) > 70


def test_tensorflow_variables_are_read_in_the_order_recorded() -> None:
    name = "tf-legacy-synthetic-skip"
    _, tree = structure(name)
    recorded = re.findall(r"^tuple\[2\]\n'(.+)'\n", "\n".join(tree), re.MULTILINE)
    found: list[str] = []

    def visit(network: TensorFlowNetwork) -> None:
        for component in network.components.values():
            visit(component)
        found.extend(network.variables)

    for network in read_pickle((GOLDEN / f"pickles/{name}.pkl").read_bytes(), name):
        visit(network)
    assert found == recorded
    assert len(found) > 100


def test_unpickling_here_says_what_to_use() -> None:
    with pytest.raises(UserError, match="load_generator"):
        pickle.loads(write_pickle({"ema": net()}))


def test_what_cannot_be_written_is_named() -> None:
    module = net()
    module.helper = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Net\.helper: a object"):
        write_pickle({"ema": module})
    with pytest.raises(TypeError, match=r"complex64"):
        write_pickle({"t": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match="a set cannot"):
        write_pickle({"t": {1}})
