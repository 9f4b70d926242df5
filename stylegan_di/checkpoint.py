"""Snapshots: networks to use, read and written as NVlabs' pickles or as safetensors.

A pickle holds what NVlabs' training loops write, in their order: stylegan2-ada's {training_set_kwargs, G, D, G_ema,
augment_pipe} or EDM's {ema, loss_fn, augment_pipe, dataset_kwargs}. Ours end with `provenance`, a one-step student's
also with `sigma_init`, which is what tells it from a teacher. A safetensors file holds the weights as '<network>.<key>'
and the rest as JSON in its metadata. Neither kind is trusted: classes are looked up in our own table and built from
checked arguments, and the weights must be exactly those of the network so built.
"""

from __future__ import annotations

import inspect
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
from stylegan_di.data.augment import AugmentPipe
from stylegan_di.networks.edm import EDMPrecond, Precond
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.students import OneStepStudent, StyleGAN2Student
from stylegan_di.teachers import EDMTeacher
from torch_utils.persistence import (
    PersistentModule,
    PersistentObject,
    RefusedFileError,
    flatten_state,
    read_pickle,
    write_pickle,
)

FORMAT_VERSION = "1"  # of our safetensors files
CLASSES: dict[str, type[PersistentModule]] = {
    cls.__name__: cls for cls in (Generator, Discriminator, AugmentPipe, EDMPrecond)
}
# Which networks each entry of a snapshot may hold; entries of other names may hold any.
ROLES: dict[str, type[PersistentModule]] = {
    "G": Generator,
    "D": Discriminator,
    "G_ema": Generator,
    "augment_pipe": AugmentPipe,
    "ema": Precond,
}
STYLEGAN2_ORDER = ("training_set_kwargs", "G", "D", "G_ema", "augment_pipe")
EDM_ORDER = ("ema", "loss_fn", "augment_pipe", "dataset_kwargs")

# Bounds on constructor arguments, so that a forged file cannot make a constructor run for ever.
MAX_INT = 2**20
MAX_COUNT = 64  # of arguments named num_*, and of items in a list


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
class _Blueprint:
    """A network as a file describes it."""

    class_name: str
    init_args: tuple[Any, ...]
    init_kwargs: dict[str, Any]
    weights: Mapping[str, Tensor]


@dataclass
class _Contents:
    """What a file holds, nothing built yet."""

    source: str
    blueprints: dict[str, _Blueprint | None]
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
        if not isinstance(sigma_init, int | float) or not 0 < sigma_init < float("inf"):
            raise RefusedFileError(snapshot.source, f"sigma_init={str(sigma_init)[:40]}, which is no positive number")
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
        extras: plain entries: training_set_kwargs or dataset_kwargs, and for a one-step student sigma_init.
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
    texts = {name: json.dumps(part) for name, part in parts.items()}
    return _with_metadata(safetensors.torch.save(weights), {"format_version": FORMAT_VERSION} | texts)


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


def _blueprint(module: PersistentObject) -> _Blueprint:
    init_args, init_kwargs = module.state.get("_init_args"), module.state.get("_init_kwargs")
    if not isinstance(init_args, tuple) or not isinstance(init_kwargs, dict):
        raise RefusedFileError(module.source, f"a {module.class_name[:40]} without its constructor's arguments")
    return _Blueprint(module.class_name, init_args, init_kwargs, flatten_state(module))


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


def _described(name: str, entry: Any, weights: Mapping[str, Tensor]) -> _Blueprint | None:
    if entry is None:
        return None
    prefix = name + "."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return _Blueprint(entry["class_name"], tuple(entry["init_args"]), dict(entry["init_kwargs"]), own)


# Building.


def _build_snapshot(contents: _Contents, names: Collection[str]) -> Snapshot:
    """The snapshot with the named networks; the others are None."""
    networks: dict[str, torch.nn.Module | None] = {}
    for name, blueprint in contents.blueprints.items():
        networks[name] = None
        if blueprint is not None and name in names:
            networks[name] = _build(blueprint, name, contents.source)
    return Snapshot(contents.source, networks, contents.extras, contents.metadata)


def _build(blueprint: _Blueprint, name: str, source: str) -> torch.nn.Module:
    """The network of a blueprint. It is laid out without memory first, so that what is allocated is what was stored."""
    cls = CLASSES.get(blueprint.class_name)
    if cls is None or not issubclass(cls, ROLES.get(name, PersistentModule)):
        known = ", ".join(known for known, cls in CLASSES.items() if issubclass(cls, ROLES.get(name, PersistentModule)))
        remedy = f"Known for {name!r} are {known}."
        raise RefusedFileError(source, f"a {blueprint.class_name[:80]!r} as {name!r}", remedy)
    try:
        _check_arguments(blueprint.init_kwargs)
        _check_arguments(dict(enumerate(blueprint.init_args)))
        inspect.signature(cls).bind(*blueprint.init_args, **blueprint.init_kwargs)
        with torch.device("meta"):
            layout = cls(*blueprint.init_args, **blueprint.init_kwargs)
    except Exception as error:  # whatever a constructor says to arguments of any kind
        found = f"constructor arguments that {blueprint.class_name} does not take ({type(error).__name__}: {error})"
        raise RefusedFileError(source, found[:300]) from error
    _check_weights(layout.state_dict(), blueprint.weights, name, source)
    with torch.random.fork_rng(devices=[]):  # loading draws nothing from anybody's random numbers
        network = cls(*blueprint.init_args, **blueprint.init_kwargs)
    network.load_state_dict(blueprint.weights)
    return network.eval().requires_grad_(False)


def _check_arguments(arguments: Mapping[Any, Any]) -> None:
    for name, value in arguments.items():
        limit = MAX_COUNT if str(name).startswith("num_") else MAX_INT
        if isinstance(value, int) and abs(value) > limit:
            raise ValueError(f"{name} is larger than {limit}")
        if isinstance(value, Mapping):
            _check_arguments(value)
        elif isinstance(value, list | tuple):
            if len(value) > MAX_COUNT:
                raise ValueError(f"{name} has more than {MAX_COUNT} items")
            _check_arguments(dict(enumerate(value)))
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise TypeError(f"{name} is a {type(value).__name__}")


def _check_weights(layout: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str, source: str) -> None:
    """Holds that the weights are those of the network: names, shapes, types, and every number finite."""
    missing, extra = sorted(layout.keys() - weights.keys()), sorted(weights.keys() - layout.keys())
    if missing or extra:
        listed = [f"{kind} {', '.join(keys[:3])}" for kind, keys in (("without", missing), ("with", extra)) if keys]
        found = f"{name!r} {' and '.join(listed)} ({len(missing)} weights missing, {len(extra)} too many)"
        raise RefusedFileError(source, found[:400], "It was altered, or made by a different network code.")
    for key, expected in layout.items():
        value = weights[key]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            found = f"{name}.{key} as {list(value.shape)} {value.dtype}"
            remedy = f"Its constructor arguments call for {list(expected.shape)} {expected.dtype}: it was altered."
            raise RefusedFileError(source, found, remedy)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            remedy = "Its training diverged or it is damaged; use an earlier snapshot."
            raise RefusedFileError(source, f"NaN or infinite numbers in {name}.{key}", remedy)
