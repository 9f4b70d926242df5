"""Snapshots: networks to use, read and written as NVlabs' pickles or as safetensors.

A pickle holds what NVlabs' training loops write, in their order: stylegan2-ada's {training_set_kwargs, G, D, G_ema,
augment_pipe} or EDM's {ema, loss_fn, augment_pipe, dataset_kwargs}. Ours end with `provenance`, a one-step student's
also with `sigma_init`, which is what tells it from a teacher. A safetensors file holds the weights as '<network>.<key>'
and the rest as JSON in its metadata. Neither kind is trusted (`blueprint`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dnnlib.util import UserError, atomic_write
from stylegan_di import interfaces, zoo
from stylegan_di.blueprint import CLASSES, ROLES, Blueprint, build
from stylegan_di.networks.edm import Precond
from stylegan_di.networks.stylegan2 import Generator
from stylegan_di.students import OneStepStudent, StyleGAN2Student
from stylegan_di.teachers import EDMTeacher
from torch_utils.persistence import (
    Persistent,
    PersistentModule,
    PersistentObject,
    RefusedFileError,
    flatten_state,
    read_pickle,
    write_pickle,
)

FORMAT_VERSION = "1"  # of our safetensors files
STYLEGAN2_ORDER = ("training_set_kwargs", "G", "D", "G_ema", "augment_pipe")
EDM_ORDER = ("ema", "loss_fn", "augment_pipe", "dataset_kwargs")


@dataclass
class Snapshot:
    """What a network file holds.

    `source` is its name; `networks` by entry ('G_ema', 'ema', ...), None where the file says None; `extras` the other
    plain entries (training_set_kwargs or dataset_kwargs, a one-step student's sigma_init); `metadata` the provenance.
    """

    source: str
    networks: dict[str, torch.nn.Module | None]
    extras: dict[str, Any]
    metadata: dict[str, Any]


@dataclass
class _Contents:
    """What a file holds, nothing built yet."""

    source: str
    blueprints: dict[str, Blueprint | None]
    extras: dict[str, Any]
    metadata: dict[str, Any]


def load_generator(name_path_or_url: str | os.PathLike[str]) -> interfaces.Generator:
    """The generator of a network file: its G_ema where there is a choice; evaluation mode, no gradients, on the CPU.

    Args:
        name_path_or_url: a .pkl or .safetensors file, a URL, or a known name (`stylegan_di.zoo`).

    Raises:
        RefusedFileError: if the file is no network file or holds no generator; UserError: if there is none.
    """
    contents = _read(name_path_or_url)
    name = next((name for name in ("G_ema", "G") if contents.blueprints.get(name)), "ema")
    return as_generator(_build_snapshot(contents, {name}))


def load_denoiser(name_path_or_url: str | os.PathLike[str]) -> interfaces.Denoiser:
    """The teacher of a network file, in evaluation mode, without gradients, on the CPU. See `load_generator`."""
    return as_denoiser(_build_snapshot(_read(name_path_or_url), {"ema"}))


def load_snapshot(name_path_or_url: str | os.PathLike[str]) -> Snapshot:
    """All networks of a network file and what is beside them. See `load_generator`.

    Plain objects of training (EDM's loss_fn and augment_pipe) are left out.
    """
    contents = _read(name_path_or_url)
    return _build_snapshot(contents, contents.blueprints)


def as_generator(snapshot: Snapshot) -> interfaces.Generator:
    """The generator in a snapshot: its G_ema, else its G, else a one-step student's network.

    Raises:
        RefusedFileError: if it holds none.
    """
    for name in ("G_ema", "G"):
        if isinstance(network := snapshot.networks.get(name), Generator):
            return StyleGAN2Student(network).eval()
    if isinstance(network := snapshot.networks.get("ema"), Precond):
        sigma_init = snapshot.extras.get("sigma_init")
        if sigma_init is None:
            raise RefusedFileError(
                snapshot.source,
                "a diffusion teacher ('ema' without sigma_init), not a generator",
                "Pass it as --teacher (load_denoiser), or distil it to one step first (train.py --kind=di --teacher).",
            )
        if not isinstance(sigma_init, int | float) or not 0 < sigma_init < 1e9:
            raise RefusedFileError(snapshot.source, f"sigma_init={str(sigma_init)[:40]}, which is no noise level")
        return OneStepStudent(network, sigma_init).eval()
    raise RefusedFileError(snapshot.source, f"no generator: {_listing(snapshot)}", "Pass a file with G_ema or ema.")


def as_denoiser(snapshot: Snapshot) -> interfaces.Denoiser:
    """The teacher in a snapshot.

    Raises:
        RefusedFileError: if it holds none.
    """
    network = snapshot.networks.get("ema")
    if isinstance(network, Precond) and snapshot.extras.get("sigma_init") is None:
        return EDMTeacher(network).eval()
    kind = "a one-step student" if isinstance(network, Precond) else f"no diffusion model: {_listing(snapshot)}"
    raise RefusedFileError(
        snapshot.source,
        kind,
        "Pass a generator as --gan-pkl or --network (load_generator), and an EDM network as the teacher.",
    )


def as_model(snapshot: Snapshot) -> interfaces.Generator | interfaces.Denoiser:
    """What a snapshot is for: a teacher if it holds a denoiser that is no one-step student, else a generator."""
    is_teacher = "ema" in snapshot.networks and "sigma_init" not in snapshot.extras
    return as_denoiser(snapshot) if is_teacher else as_generator(snapshot)


def _listing(snapshot: Snapshot) -> str:
    names = [*snapshot.networks, *snapshot.extras]
    return f"its entries are {', '.join(names)[:200]}" if names else "it is empty"


def save_snapshot(
    path: str | os.PathLike[str],
    networks: Mapping[str, torch.nn.Module | None],
    *,
    extras: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Writes networks to a .pkl that NVlabs' tools open or a .safetensors file, atomically.

    Whatever their present mode and device, networks are written in evaluation mode, without gradients, on the CPU.

    Args:
        path: where; the suffix tells the format.
        networks: by entry: G, D, G_ema, augment_pipe (NVlabs' loader wants the first three), or ema.
        extras: other entries: training_set_kwargs or dataset_kwargs, a one-step student's sigma_init, augment_pipe.
        metadata: provenance, str or float each (command, teacher, kimg, ...).

    Raises:
        UserError: if the suffix is another. TypeError: for what cannot be written.
    """
    for name, network in networks.items():
        if network is not None and type(network) is not CLASSES.get(type(network).__name__):
            raise TypeError(f"{name}: a {type(network).__name__} is none of {', '.join(CLASSES)}")
    suffix = Path(path).suffix
    if suffix == ".pkl":
        data = _to_pickle(networks, extras, metadata)
    elif suffix == ".safetensors":
        data = _to_safetensors(networks, extras, metadata)
    else:
        raise UserError(f"{path}: snapshots end in .pkl or .safetensors, not {suffix!r}")
    atomic_write(path, data)


def _to_pickle(
    networks: Mapping[str, torch.nn.Module | None], extras: Mapping[str, Any], metadata: Mapping[str, Any]
) -> bytes:
    entries = {**networks, **extras}
    order = EDM_ORDER if "ema" in networks else STYLEGAN2_ORDER
    ordered = {name: entries.get(name) for name in order} | entries
    return write_pickle(ordered | {"provenance": dict(metadata)})


def _to_safetensors(
    networks: Mapping[str, torch.nn.Module | None], extras: Mapping[str, Any], metadata: Mapping[str, Any]
) -> bytes:
    weights: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, network in networks.items():
        described[name] = None
        if isinstance(network, PersistentModule):
            described[name] = {
                "class_name": type(network).__name__,
                "init_args": network._init_args,
                "init_kwargs": network.init_kwargs,
            }
            for key, value in network.state_dict().items():
                weights[f"{name}.{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    parts = {"networks": described, "extras": dict(extras), "provenance": dict(metadata)}
    texts = {name: json.dumps(part, default=_arguments) for name, part in parts.items()}
    return _with_metadata(safetensors.torch.save(weights), {"format_version": FORMAT_VERSION} | texts)


def _arguments(obj: Any) -> dict[str, Any]:
    """A plain object of EDM's training, such as its augment_pipe, as the arguments it was built with."""
    if not isinstance(obj, Persistent):
        raise TypeError(f"a {type(obj).__name__} cannot be written to a snapshot")
    return obj.init_kwargs


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of valid safetensors (8 bytes of length, then JSON), and where the weights begin."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Puts metadata into safetensors in the order given; the library's own order differs from run to run."""
    header, end = _header(data)
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


# Reading.


def _read(name_path_or_url: str | os.PathLike[str]) -> _Contents:
    source = os.fspath(name_path_or_url)
    path = zoo.resolve(source)
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return _from_safetensors(data, source)
    return _from_pickle(read_pickle(data, source), source)


def _from_pickle(content: Any, source: str) -> _Contents:
    if not isinstance(content, dict):
        raise RefusedFileError(source, f"a {type(content).__name__} at the top, not a dict of networks")
    contents = _Contents(source, {}, {}, {})
    for name, entry in content.items():
        if isinstance(entry, PersistentObject):
            if "_modules" in entry.state:  # else a plain object of EDM's training, which is not needed
                contents.blueprints[name] = _blueprint(entry)
        elif entry is None and name in ROLES:
            contents.blueprints[name] = None
        elif entry is None and name == "loss_fn":
            continue
        elif name == "provenance" and isinstance(entry, dict):
            contents.metadata = entry
        else:
            contents.extras[name] = entry
    return contents


def _blueprint(module: PersistentObject) -> Blueprint:
    init_args, init_kwargs = module.state.get("_init_args"), module.state.get("_init_kwargs")
    if not isinstance(init_args, tuple) or not isinstance(init_kwargs, dict):
        raise RefusedFileError(module.source, f"a {module.class_name[:40]} without its constructor's arguments")
    return Blueprint(module.class_name, init_args, init_kwargs, flatten_state(module))


def _from_safetensors(data: bytes, source: str) -> _Contents:
    try:
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RefusedFileError(source, f"no valid safetensors file ({str(error)[:100]})", "Copy it again.") from None
    header = _header(data)[0].get("__metadata__", {})  # which safetensors.torch.load has validated but not returned
    if header.get("format_version") != FORMAT_VERSION:
        raise RefusedFileError(
            source,
            f"safetensors of format_version {header.get('format_version')}, not {FORMAT_VERSION}",
            "Pass a file that this project's save_snapshot wrote.",
        )
    try:
        described, extras, metadata = (json.loads(header[part]) for part in ("networks", "extras", "provenance"))
        blueprints = {name: _described(name, entry, weights) for name, entry in described.items()}
        extras, metadata = dict(extras), dict(metadata)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RefusedFileError(source, f"damaged metadata ({type(error).__name__})", "Copy it again.") from None
    return _Contents(source, blueprints, extras, metadata)


def _described(name: str, entry: Any, weights: Mapping[str, Tensor]) -> Blueprint | None:
    if entry is None:
        return None
    if not isinstance(entry["class_name"], str):
        raise TypeError("a class name that is no text")
    prefix = name + "."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return Blueprint(entry["class_name"], tuple(entry["init_args"]), dict(entry["init_kwargs"]), own)


def _build_snapshot(contents: _Contents, names: Collection[str]) -> Snapshot:
    """The snapshot with the named networks; the others are None."""
    networks: dict[str, torch.nn.Module | None] = {}
    for name, blueprint in contents.blueprints.items():
        networks[name] = None
        if blueprint is not None and name in names:
            networks[name] = build(blueprint, name, contents.source)
    return Snapshot(contents.source, networks, contents.extras, contents.metadata)
