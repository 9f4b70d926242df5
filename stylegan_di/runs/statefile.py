"""Training states on disk: one safetensors file each, complete once its manifest exists.

`training-state-<images seen>.safetensors` holds tensors, and in its header plain values and the configuration;
`training-state-<images seen>.json`, written last, holds its SHA-256, size, configuration hash and library versions.
Both are written under temporary names, synced to disk and renamed. Nothing in them is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import open_untrusted, read_json, read_json_file, safetensors_budget, untrusted
from stylegan_di.dnnlib.util import UserError, atomic_file, atomic_write, sha256_of
from stylegan_di.runs.endings import storage_errors

FORMAT = 1
MAX_MANIFEST = 1 << 16  # bytes
KEPT = 3  # number of newest states to keep
NAME = re.compile(r"training-state-(\d{9,})\.safetensors")
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """The contents of a state file: tensors by name, plain values, and the run's configuration as plain values."""

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    config: dict[str, Any]


def versions() -> dict[str, str]:
    """Returns the versions that a run's exact numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def state_path(folder: Path, nimg: int) -> Path:
    return folder / f"training-state-{nimg:09d}.safetensors"


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


# Writing.


def save_state(
    path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: Mapping[str, Any], config_sha256: str
) -> None:
    """Writes a state and then its manifest; an old file at `path` stays until the new one is complete.

    Args:
        path: its name ends in .safetensors.
        tensors: by name, on any device.
        values: plain values for JSON.
        config: the run's configuration.
        config_sha256: the hash of the options that must not change, for the manifest.

    Raises:
        StorageError: if it cannot be written; the message names the path and the space needed.
    """
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with storage_errors(path, need):
        with atomic_file(path) as file:
            writer = _HashedWriter(file)
            _write_safetensors(writer, tensors, {"values": json.dumps(values), "config": json.dumps(config)})
        content = {
            "format": FORMAT, "file": path.name, "sha256": writer.digest.hexdigest(), "bytes": writer.size,
            "config_sha256": config_sha256, "versions": versions(), "threads": torch.get_num_threads(),
            "written": time.time(),
        }  # fmt: skip
        atomic_write(manifest_path(path), (json.dumps(content, indent=2) + "\n").encode())


class _HashedWriter:
    """Writes to a file and computes the SHA-256 and size of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _write_safetensors(writer: _HashedWriter, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the safetensors format tensor by tensor, so that memory never holds a second copy of all weights."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # keeps all aligned
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    writer.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        flat = tensor.detach().to("cpu").contiguous().as_strided([tensor.numel()], [1])  # for an empty one any stride
        writer.write(flat.view(torch.uint8).numpy().data)


def prune(folder: Path, newest: Path) -> None:
    """Removes all but the last KEPT states and `newest`, including states whose write was interrupted."""
    paths = complete_states(folder)
    for path in folder.iterdir():
        is_state = NAME.fullmatch(path.name) is not None
        if is_state and path != newest and path not in paths[-KEPT:]:
            manifest_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Removes the temporary files of a run that was killed while writing; no other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def keep_best(path: Path, best: Path) -> None:
    """Gives a state a second name that `prune` ignores: a link, or a copy where links are not possible, as on FAT."""
    for source, target in ((path, best), (manifest_path(path), manifest_path(best))):
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.EINVAL):
                raise
            with open(source, "rb") as file, atomic_file(target) as copy:
                shutil.copyfileobj(file, copy)
        else:
            os.replace(temporary, target)


# Reading.


def complete_states(folder: Path) -> list[Path]:
    """Returns the states of a run folder that have a manifest, oldest first."""
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if manifest_path(path).is_file()]


def manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of a state.

    Raises:
        RefusedFileError: if it is none.
    """
    source = manifest_path(path)
    with untrusted(str(source)):
        content = read_json_file(source, MAX_MANIFEST)
        if content["format"] != FORMAT:
            raise UserError(f"{source}: its format is {str(content['format'])[:20]}, this version reads {FORMAT}")
        texts = (content["sha256"], content["config_sha256"])
        if not all(isinstance(text, str) for text in texts) or not isinstance(content["versions"], dict):
            raise ValueError("a hash or versions of a wrong type")
        return dict(content)


def damage(path: Path) -> str | None:
    """Returns what is wrong with a state file, None if it is intact."""
    try:
        found = manifest(path)
        with untrusted(str(path)), open_untrusted(path) as (file, size):
            if size != found["bytes"]:
                return f"it has {size} bytes, not {str(found['bytes'])[:20]}"
            digest = sha256_of(file)
    except UserError as error:
        return str(error)
    return None if digest == found["sha256"] else f"its SHA-256 is {digest[:12]}..., not {found['sha256'][:12]}..."


def load_state(path: Path) -> State:
    """Reads a state; call `damage` first.

    Raises:
        UserError: if it is no training state.
    """
    with untrusted(str(path), remedy="Pass a training state that stylegan-di train wrote."):
        with open_untrusted(path) as (opened, size):
            budget = safetensors_budget(opened, size)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        values, config = (read_json(metadata[name], budget) for name in ("values", "config"))
        if not isinstance(values, dict) or not isinstance(config, dict):
            raise ValueError("values or options that are no dict")
        return State(path, tensors, values, config)


def changes(path: Path) -> tuple[list[str], str]:
    """Returns what has changed since a state: 'torch 2.12.0, now 2.13.0' or the like for each library, then '1, now 2'
    for the number of threads per process, '' where it is the same.
    """
    found, threads = manifest(path), torch.get_num_threads()
    old = found["versions"]
    libraries = [f"{name} {old.get(name)}, now {now}" for name, now in versions().items() if old.get(name) != now]
    before = found.get("threads", threads)
    return libraries, "" if before == threads else f"{before}, now {threads}"
