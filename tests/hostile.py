"""Files that must be refused, each with the message it must get ({file} stands for its path)."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pickletools
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from stylegan_di.snapshots.checkpoint import save_snapshot
from stylegan_di.torch_utils.persistence import write_pickle
from tests.tiny import edm_network, gan_networks

NOT_A_NETWORK = "It is no network file of stylegan2-ada-pytorch or edm; use a copy from a source you trust."
DAMAGED = "The file is damaged; download or copy it again."
COULD_RUN = "which no network needs and which could run code"
ALTERED = "It was altered, or made by a different network code."


class Called:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body


def storage_stream(**replaced: Any) -> bytes:
    """The legacy torch stream of the numbers 0..11, with bytes replaced."""
    data = write_pickle({"t": torch.arange(12, dtype=torch.float32)})
    stream = next(argument for opcode, argument, _ in pickletools.genops(data) if "BINBYTES" in opcode.name)
    for old, new in replaced.get("changes", {}).items():
        assert old in stream
        stream = stream.replace(old, new)
    return stream


def tensor(size: Any = (3, 4), stride: Any = (4, 1), offset: int = 0, stream: bytes | None = None) -> bytes:
    stored = Called(torch.storage._load_from_bytes, storage_stream() if stream is None else stream)
    return pickle.dumps(Called(torch._utils._rebuild_tensor_v2, stored, offset, size, stride, False, OrderedDict()))


def gan(**changes: Any) -> bytes:
    """A good generator's pickle, with entries of its state replaced or, by None, taken out."""
    network: Any = gan_networks()["G_ema"]
    for key, value in changes.items():
        owner, _, name = key.rpartition(".")
        module = network.get_submodule(owner)
        for group in (module._parameters, module._buffers):
            group.pop(name, None)
        if value is not None:
            module.register_buffer(name, value)
    return write_pickle({"G_ema": network})


def tar_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("network.pkl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def refused_pickles() -> dict[str, tuple[bytes, str]]:
    """name -> contents of a .pkl, what is found in it and the remedy."""
    good = gan()
    scalar = np.float64(0).__reduce__()[0]
    system = program(b"cos\nsystem\n\x8c\x04true\x85R.")
    not_finite = torch.full([8], float("nan"))
    objects = "a numpy value that is not of little-endian plain numbers (objects could run code)"
    return {
        "os.system": (system, f"the global 'os' 'system', {COULD_RUN}. {NOT_A_NETWORK}"),
        "exec": (
            program(b"cbuiltins\nexec\n\x8c\x04pass\x85R."),
            f"the global 'builtins' 'exec', {COULD_RUN}. {NOT_A_NETWORK}",
        ),
        "getattr chain": (
            program(b"cbuiltins\ngetattr\ncbuiltins\ngetattr\n\x8c\x01a\x86R\x8c\x01b\x86R."),
            f"the global 'builtins' 'getattr', {COULD_RUN}. {NOT_A_NETWORK}",
        ),
        "dotted name": (
            program(b"ccollections\nOrderedDict.update\n)R."),
            f"the global 'collections' 'OrderedDict.update', {COULD_RUN}. {NOT_A_NETWORK}",
        ),
        "hub loader": (
            program(b"ctorch.hub\nload\n\x8c\x01a\x85R."),
            f"the global 'torch.hub' 'load', {COULD_RUN}. {NOT_A_NETWORK}",
        ),
        "payload in the nested storage stream": (
            tensor(stream=storage_stream(changes={b"ctorch\nFloatStorage\n": b"cos\nsystem\n"})),
            f"the global 'os' 'system', {COULD_RUN}. {NOT_A_NETWORK}",
        ),
        "object-dtype scalar": (
            pickle.dumps(Called(scalar, np.dtype("O"), b"01234567")),
            f"{objects}. {NOT_A_NETWORK}",
        ),
        "object array": (pickle.dumps(np.array([None])), f"{objects}. {NOT_A_NETWORK}"),
        "second stream": (good + b"\x80\x04N.", f"4 bytes after the end of the pickle. {NOT_A_NETWORK}"),
        "sparse LONG_BINPUT": (
            program(b"Nr\xff\xff\xff\x7f."),
            f"memo index 2147483647 after 0 entries. {NOT_A_NETWORK}",
        ),
        "a million MARKs": (program(b"(" * 1_000_000 + b"."), f"more than 100 nested pickle MARKs. {NOT_A_NETWORK}"),
        "BUILD with slot state": (
            program(b"ctorch.nn.modules.container\nModuleDict\n)\x81N}\x86b."),
            f"a ModuleDict whose state is no dict. {NOT_A_NETWORK}",
        ),
        "out-of-band buffer": (program(b"\x97."), f"pickle opcode NEXT_BUFFER at byte 2. {NOT_A_NETWORK}"),
        "read-only buffer": (program(b"N\x98."), f"pickle opcode READONLY_BUFFER at byte 3. {NOT_A_NETWORK}"),
        "INST": (program(b"(ios\nsystem\n."), f"pickle opcode INST at byte 3. {NOT_A_NETWORK}"),
        "OBJ": (program(b"(No."), f"pickle opcode OBJ at byte 4. {NOT_A_NETWORK}"),
        "EXT2": (program(b"\x83\x01\x00."), f"pickle opcode EXT2 at byte 2. {NOT_A_NETWORK}"),
        "NEWOBJ_EX": (
            program(b"cdnnlib.util\nEasyDict\n)}\x92."),
            f"pickle opcode NEWOBJ_EX at byte 26. {NOT_A_NETWORK}",
        ),
        "protocol 1": (b"\x80\x01N.", f"pickle protocol 1 at byte 0, not 2 to 5 at the beginning. {NOT_A_NETWORK}"),
        "strides out of bounds": (tensor(stride=(5, 1)), f"a tensor that reaches beyond its storage. {DAMAGED}"),
        "zero strides": (
            tensor(size=(1 << 40,), stride=(0,)),
            f"a tensor whose strides are zero or overlap. {NOT_A_NETWORK}",
        ),
        "storage count unlike its bytes": (
            tensor(stream=storage_stream() + b"\0"),
            f"a tensor's storage of 12 numbers in 49 bytes (torch.float32). {DAMAGED}",
        ),
        "bytes that are no latin-1": (
            program(b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nc_codecs\nencode\n"
                    b"\x8c\x03\xe2\x82\xac\x8c\x06latin1\x86R\x85RK\x00))\x89}tR."),
            f"bytes written as text that is not latin-1. {DAMAGED}",
        ),
        "bytes of another encoding": (
            program(b"c_codecs\nencode\n\x8c\x03abc\x8c\x05utf-8\x86R."),
            f"bytes written as something else than latin-1 text. {NOT_A_NETWORK}",
        ),
        "gzip": (gzip.compress(good, mtime=0), "a gzip archive. Unpack it first."),
        "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7z archive. Unpack it first."),
        "tar": (tar_of(good), "a tar archive. Unpack it first."),
        "HTML": (b"<!DOCTYPE html>", "an HTML or XML page. The download went wrong; fetch the file itself."),
        "git-LFS pointer": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a git-LFS pointer. Fetch the file itself with `git lfs pull`.",
        ),
        "torch.save": (
            b"PK\x03\x04",
            "a zip archive or torch.save file. Pass a network pickle (.pkl) or .safetensors file.",
        ),
        "empty": (b"", f"an empty file. {DAMAGED}"),
        "truncated": (
            good[:2] + good[11:5000],  # without the frame, which tells at once
            f"the end of the file after 4991 bytes, in the middle of a value. {DAMAGED}",
        ),
        "truncated frame": (
            good[:5000],
            f"a pickle frame that goes beyond the end of the file. {DAMAGED}",
        ),
        "NaN weights": (
            gan(**{"mapping.fc0.bias": not_finite}),
            "NaN or infinite numbers in G_ema.mapping.fc0.bias. Its training diverged or it is damaged; "
            "use an earlier snapshot.",
        ),
        "missing keys": (
            gan(**{"mapping.w_avg": None}),
            f"'G_ema' without mapping.w_avg (1 weights missing, 0 too many). {ALTERED}",
        ),
        "extra keys": (
            gan(**{"mapping.more": torch.zeros(1)}),
            f"'G_ema' with mapping.more (0 weights missing, 1 too many). {ALTERED}",
        ),
        "misshapen keys": (
            gan(**{"mapping.w_avg": torch.zeros(9)}),
            "G_ema.mapping.w_avg as [9] torch.float32. "
            "Its constructor arguments call for [8] torch.float32: it was altered.",
        ),
        "unknown class": (
            write_pickle({"G_ema": gan_networks()["G_ema"].mapping}),  # type: ignore[union-attr]
            "a 'MappingNetwork' as 'G_ema'. Known for 'G_ema' are Generator, stylegan3.Generator, r3gan.Generator.",
        ),
        "another version": (
            good.replace(b"version\x94K\x06", b"version\x94K\x05", 1),
            "persistent objects of another version than 6. Load and save it again with the NVlabs code that wrote it.",
        ),
        "statistics": (
            write_pickle({"mu": 1.0}),
            "no generator: its entries are mu. Pass a file with G_ema or ema.",
        ),
        "teacher as the GAN": (
            write_pickle({"ema": edm_network()}),
            "a diffusion teacher ('ema' without sigma_init), not a generator. Pass it as --teacher (load_denoiser), or "
            "distil it to one step first (stylegan-di train --kind=di --teacher). For a one-step student of another "
            "project, give its noise level: stylegan-di convert IN OUT --sigma-init=2.5.",
        ),
        "two networks of no known name": (
            write_pickle({"old": gan_networks()["G"], "new": gan_networks()["G"]}),
            "several networks: old, new. Choose one with --which, or take it out with stylegan-di convert IN OUT "
            "--which=NAME.",
        ),
    }


def refused_tensorflow() -> dict[str, tuple[bytes, str]]:
    """The same of TensorFlow-era files, written as a call of their class with a state."""
    only = "Only StyleGAN2's networks (config E, F and ADA's) can be converted."

    def network(name: str = "G", version: int = 5, variables: Any = (), **kwargs: Any) -> Any:
        state = {"version": version, "name": name, "static_kwargs": kwargs, "components": {}, "build_module_src": "",
                 "build_func_name": "f", "variables": list(variables)}  # fmt: skip
        return TensorFlow(state)

    triple = [network(resolution=4) for _ in range(3)]
    return {
        "TensorFlow version 3": (
            tensorflow_pickle(network(version=3)),
            "a TensorFlow network of version 3, not 4 or later. It is older than StyleGAN2, whose networks alone can "
            "be converted.",
        ),
        "TensorFlow argument": (
            tensorflow_pickle((network(blur_filter=1), *triple[1:])),
            f"the TensorFlow argument 'blur_filter' of 'G'. {only}",
        ),
        "TensorFlow variable": (
            tensorflow_pickle((network(variables=[("x", 1.0)]), *triple[1:])),
            f"a TensorFlow variable 'x' in 'G'. {only}",
        ),
        "TensorFlow shape": (
            tensorflow_pickle((network(variables=[("mapping/Dense0/weight", 1.0)]), *triple[1:])),
            "a TensorFlow variable 'mapping/Dense0/weight' of shape []. It was altered or is damaged.",
        ),
        "TensorFlow pair": (
            tensorflow_pickle((triple[0], triple[1])),
            f"2 TensorFlow networks, not the three (G, D, Gs) of a snapshot. {NOT_A_NETWORK}",
        ),
        "TensorFlow weights missing": (
            tensorflow_pickle(tuple(triple)),
            "'G_ema' without mapping.fc0.bias, mapping.fc0.weight, mapping.fc1.bias (28 weights missing, 0 too many). "
            f"{ALTERED}",
        ),
    }


class TensorFlow:
    """Stands for a TensorFlow-era network on its way into a pickle."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


def tensorflow_pickle(value: Any) -> bytes:
    """A pickle in which every TensorFlow object is NEWOBJ and BUILD of dnnlib.tflib.network.Network."""
    parts = value if isinstance(value, tuple) else (value,)
    body = b"".join(b"cdnnlib.tflib.network\nNetwork\n)\x81" + _opcodes(part.state) + b"b" for part in parts)
    return b"\x80\x04(" + body + b"t." if isinstance(value, tuple) else b"\x80\x04" + body + b"."


def _opcodes(state: dict[str, Any]) -> bytes:
    """A dict's opcodes, without a memo, so that they can stand behind others."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 3)
    pickler.fast = True
    pickler.dump(state)
    return buffer.getvalue()[2:-1]


def refused_safetensors() -> dict[str, tuple[bytes, str]]:
    """name -> contents of a .safetensors, what is found in it and the remedy."""
    ours = "Pass a file that this project's save_snapshot wrote."
    huge = b"\xff" * 8 + b"{}"
    headers = {"format_version": "1", "networks": "[", "extras": "{}", "provenance": "{}"}
    return {
        "foreign": (
            safetensors.torch.save({"x": torch.zeros(1)}),
            f"safetensors of format_version None, not 1. {ours}",
        ),
        "metadata": (
            safetensors.torch.save({"x": torch.zeros(1)}, headers),
            f"contents that cannot be read (JSONDecodeError: Expecting value: line 1 column 2 (char 1)). {DAMAGED}",
        ),
        "header": (
            huge,
            "contents that cannot be read (a header of 18446744073709551615 bytes in a file of 10). "
            f"{DAMAGED}",
        ),
    }


def write_all(folder: Path, leave_out: list[str]) -> dict[Path, str]:
    """Writes every refused file but some; path -> the whole message."""
    expected = {}
    tables = ((refused_pickles() | refused_tensorflow(), ".pkl"), (refused_safetensors(), ".safetensors"))
    for table, suffix in tables:
        for name, (data, message) in table.items():
            if name in leave_out:
                continue
            path = folder / (name.replace(" ", "-") + suffix)
            path.write_bytes(data)
            expected[path] = f"{path}: found {message}"
    return expected


def write_edited_source(folder: Path) -> tuple[Path, Path]:
    """A good file whose embedded source would write a file if it ran: its path, and that file's."""
    mark = folder / "ran"
    source = f"open({json.dumps(str(mark))}, 'w').close()"
    networks = gan_networks()
    path = folder / "edited-source.pkl"
    path.write_bytes(write_pickle({"G_ema": networks["G_ema"]}, source_of=lambda cls: source))
    for suffix in ("safetensors", "pkl"):  # the latter carries a source that could run
        save_snapshot(folder / f"good.{suffix}", networks, extras={}, metadata={})
    return path, mark
