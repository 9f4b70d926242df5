"""Writes networks as a pickle for NVlabs' tools, or as safetensors; `formats` says what is in them, and reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.r3gan import Generator as R3GANGenerator
from stylegan_di.networks.stylegan3 import Generator as StyleGAN3
from stylegan_di.snapshots import stylegan3
from stylegan_di.snapshots.blueprint import class_name
from stylegan_di.snapshots.formats import CHECKSUM, FORMAT_VERSION, checksum
from stylegan_di.snapshots.portable import STYLEGAN2_MODULES, nvlabs_source, portable_source
from stylegan_di.torch_utils.persistence import Persistent, PersistentModule, write_pickle

TARGETS = tuple(STYLEGAN2_MODULES)  # repositories whose StyleGAN2 a pickle may be written for alone
#: The order of a pickle's entries.
STYLEGAN2_ORDER = ("training_set_kwargs", "G", "D", "G_ema", "augment_pipe")
R3GAN_ORDER = ("G", "D", "G_ema", "training_set_kwargs")
EDM_ORDER = ("ema", "loss_fn", "augment_pipe", "dataset_kwargs")


def to_pickle(
    networks: Mapping[str, torch.nn.Module | None],
    extras: Mapping[str, Any],
    metadata: Mapping[str, Any],
    target: str | None = None,
) -> bytes:
    """Returns a pickle for NVlabs' tools.

    `target` is the one repository, of TARGETS, whose classes it names (StyleGAN3's are in one only); by default it
    carries its source, and opens in all of them.

    Raises:
        UserError: if the target is unknown.
    """
    if target is not None and target not in TARGETS:
        raise UserError(f"target {target!r}; accepted are {', '.join(TARGETS)}")
    entries = {**networks, **extras}
    order = EDM_ORDER if "ema" in networks else STYLEGAN2_ORDER
    if any(isinstance(network, R3GANGenerator) for network in networks.values()):
        order = R3GAN_ORDER
    tree = {name: entries.get(name) for name in order} | entries | {"provenance": _with_hash(networks, metadata)}
    has_stylegan3 = any(isinstance(network, StyleGAN3) for network in networks.values())
    if target is not None and has_stylegan3:
        target = "stylegan3"
    if target == "stylegan3" or has_stylegan3:
        tree = {name: _for_stylegan3(entry) for name, entry in tree.items()}
    source_of = portable_source if target is None else partial(nvlabs_source, repository=target)
    return write_pickle(tree, source_of=source_of)


def _for_stylegan3(entry: Any) -> Any:
    return stylegan3.for_stylegan3(entry) if isinstance(entry, torch.nn.Module) else entry


def to_safetensors(
    networks: Mapping[str, torch.nn.Module | None], extras: Mapping[str, Any], metadata: Mapping[str, Any]
) -> bytes:
    """Returns a safetensors file; the same networks give the same bytes."""
    weights: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, network in networks.items():
        described[name] = None
        if isinstance(network, PersistentModule):
            described[name] = {
                "class_name": class_name(network),
                "init_args": network._init_args,
                "init_kwargs": network.init_kwargs,
            }
            for key, value in network.state_dict().items():
                weights[f"{name}.{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    parts = {"networks": described, "extras": dict(extras), "provenance": _with_hash(networks, metadata)}
    texts = {name: json.dumps(part, default=_arguments) for name, part in parts.items()}
    return _with_metadata(safetensors.torch.save(weights), {"format_version": FORMAT_VERSION} | texts)


def _arguments(obj: Any) -> dict[str, Any]:
    """Describes an object of EDM's training, such as its augment_pipe, by its constructor's arguments."""
    if not isinstance(obj, Persistent):
        raise TypeError(f"a {type(obj).__name__} cannot be written to a snapshot")
    return obj.init_kwargs


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Inserts metadata into safetensors in the given order; the library's order differs from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = json.dumps({"__metadata__": metadata} | header).encode()
    text += b" " * (-len(text) % 8)  # keeps the weights aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def _with_hash(networks: Mapping[str, torch.nn.Module | None], metadata: Mapping[str, Any]) -> dict[str, Any]:
    states = {name: None if network is None else network.state_dict() for name, network in networks.items()}
    return dict(metadata) | {CHECKSUM: checksum(states)}
