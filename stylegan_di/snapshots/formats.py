"""Reads network files without building the networks: NVlabs' pickles, ours, safetensors, and state dicts.

A pickle holds what NVlabs' training loops write, in their order: stylegan2-ada's and stylegan3's {training_set_kwargs,
G, D, G_ema, augment_pipe}, EDM's {ema, loss_fn, augment_pipe, dataset_kwargs}, or the TensorFlow era's triple
(G, D, Gs). Our pickles add `provenance`; a one-step student's also adds `sigma_init`, which distinguishes it from a
teacher. A safetensors file holds the weights as '<network>.<key>' and the rest as JSON in its metadata. A .pt file of
guided-diffusion and a .bin of DMD2 are state dicts that torch.save wrote.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.dnnlib.untrusted import Budget, open_untrusted, read_json, untrusted
from stylegan_di.snapshots import adm, edm_weights, r3gan, stylegan3, tensorflow
from stylegan_di.snapshots.blueprint import R3GAN, ROLES, STYLEGAN3, Blueprint
from stylegan_di.torch_utils.persistence import (
    PersistentObject,
    RefusedFileError,
    TensorFlowNetwork,
    check_beginning,
    flatten_state,
    read_pickle,
)
from stylegan_di.torch_utils.torch_archive import read_state_dict

CHECKSUM = "weights_sha256"  # the entry of the provenance that holds the `checksum`
FORMAT_VERSION = "1"  # the version of our safetensors files
OPTIMIZERS = ("D_opt_state", "G_opt_state")  # R3GAN's
DIFF_INSTRUCT, EMA_ALONE = "Diff-Instruct", "EDM's networks without its training (SiD's, DMD2's)"
STATE_DICTS = (".pt", ".pth", ".bin")  # suffixes of what torch.save wrote
AMBIGUOUS = (DIFF_INSTRUCT, EMA_ALONE)  # their 'ema' may be a one-step student; the file does not say


@dataclass
class Contents:
    """The contents of a network file, before anything is built.

    `source` is the file's name; `writer` is the program whose form it has; `blueprints` are by entry, None where the
    file says None; `extras` are the other plain entries; `metadata` is the provenance; `objects` names the entries that
    are not read because only training uses them (EDM's loss_fn, EDM2's encoder); `embedded` holds the SHA-256 of each
    embedded source; `weights_sha256` is the `checksum` that was saved with the file, None where there is none.
    """

    source: str
    writer: str
    blueprints: dict[str, Blueprint | None] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    embedded: tuple[str, ...] = ()
    weights_sha256: str | None = None

    def is_intact(self) -> bool | None:
        """Whether the weights are those that were saved; None if the file does not say."""
        if self.weights_sha256 is None:
            return None
        weights = {name: None if part is None else part.weights for name, part in self.blueprints.items()}
        return checksum(weights) == self.weights_sha256


def open_contents(name_path_or_url: str | os.PathLike[str]) -> Contents:
    """Reads the contents of a network file; see `checkpoint.load_generator` for its name.

    Raises:
        RefusedFileError: if it is no network file.
        UserError: if it does not exist.
    """
    source, path = os.fspath(name_path_or_url), zoo.resolve(name_path_or_url)
    with untrusted(source, path), open_untrusted(path) as (file, _):
        head = file.read(512)
        if path.suffix not in (".safetensors", *STATE_DICTS):  # before all of a file that is something else is read
            check_beginning(head, source)
        file.seek(0)
        return read_contents(file.read(), source, path.suffix)


def read_contents(data: bytes, source: str, suffix: str = ".pkl") -> Contents:
    """Reads the contents of a network file.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        suffix: the file's suffix; '.safetensors' is read as such, '.pt' as a state dict, anything else as a pickle.

    Raises:
        RefusedFileError: if it is no network file.
    """
    budget = Budget(len(data))
    with untrusted(source):
        if suffix == ".safetensors":
            return _from_safetensors(data, source, budget)
        if suffix in STATE_DICTS:
            weights = read_state_dict(data, source, budget)
            if edm_weights.MARK in weights:
                return Contents(source, EMA_ALONE, {"ema": edm_weights.to_blueprint(weights)})
            return Contents(source, "guided-diffusion", {"ema": adm.to_blueprint(weights, source)})
        return _read(data, source, budget)


def _read(data: bytes, source: str, budget: Budget) -> Contents:
    content = read_pickle(data, source, budget=budget)
    if isinstance(content, tuple) and content and all(isinstance(part, TensorFlowNetwork) for part in content):
        blueprints = tensorflow.to_blueprints(content, source)
        hashes = sorted({digest for network in content for digest in _tensorflow_hashes(network)})
        extras = {"training_set_kwargs": None}
        return Contents(source, "TensorFlow-era StyleGAN2", blueprints, extras, embedded=tuple(hashes))
    if not isinstance(content, dict):
        raise RefusedFileError(source, f"a {type(content).__name__} at the top, not a dict of networks")
    return _from_pickle(content, source, budget)


def checksum(networks: Mapping[str, Mapping[str, Tensor] | None]) -> str:
    """Returns the SHA-256 of the weights of networks by entry: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, weights in sorted(networks.items()):
        for key, value in sorted((weights or {}).items()):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name}.{key} {plain.dtype} {list(plain.shape)}\n".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_pickle(content: dict[str, Any], source: str, budget: Budget) -> Contents:
    contents = Contents(source, _writer(content), embedded=tuple(sorted(set(_hashes(content)))))
    for name, entry in content.items():
        if isinstance(entry, PersistentObject):
            if "_modules" in entry.state:
                contents.blueprints[name] = _blueprint(entry, budget)
            else:
                contents.objects += (name,)
        elif entry is None and name in ROLES:
            contents.blueprints[name] = None
        elif entry is None and name == "loss_fn":
            continue
        elif name in OPTIMIZERS:
            contents.objects += (name,)
        elif name == "provenance" and isinstance(entry, dict):
            contents.metadata, contents.weights_sha256 = _without_hash(entry)
        else:
            contents.extras[name] = entry
    return contents


def _without_hash(provenance: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    found = provenance.get(CHECKSUM)
    rest = {name: value for name, value in provenance.items() if name != CHECKSUM}
    return rest, None if found is None else str(found)


def _blueprint(module: PersistentObject, budget: Budget) -> Blueprint:
    if r3gan.is_r3gans(module):
        return Blueprint(R3GAN + r3gan.CLASSES[module.class_name], (), *r3gan.arguments(module, budget))
    init_args, init_kwargs = module.state.get("_init_args"), module.state.get("_init_kwargs")
    if not isinstance(init_args, tuple) or not isinstance(init_kwargs, dict):
        raise RefusedFileError(module.source, f"a {module.class_name[:40]} without its constructor's arguments")
    if stylegan3.is_alias_free(module):
        return Blueprint(STYLEGAN3, init_args, init_kwargs, flatten_state(module, budget))
    if stylegan3.is_stylegan3s(module):
        init_kwargs = stylegan3.our_arguments(module, init_kwargs)
    elif module.class_name == "Discriminator" and not init_args:
        init_kwargs = stylegan3.stored_arguments(module) | init_kwargs
    return Blueprint(module.class_name, init_args, init_kwargs, flatten_state(module, budget))


def _writer(content: Mapping[str, Any]) -> str:
    """Recognises the program that wrote a pickle by its entries."""
    if "provenance" in content:
        return "stylegan-di"
    if "encoder" in content:
        return "EDM2"
    if "Sg" in content:
        return DIFF_INSTRUCT
    if "ema" in content:
        return "EDM" if "loss_fn" in content else EMA_ALONE
    generators = [entry for entry in content.values() if isinstance(entry, PersistentObject)]
    if any(r3gan.is_r3gans(entry) for entry in generators):
        return "R3GAN"
    if any(stylegan3.is_alias_free(entry) for entry in generators):
        return "stylegan3"
    if any(stylegan3.is_stylegan3s(entry) for entry in generators):
        return "stylegan3 (StyleGAN2)"
    return "stylegan2-ada-pytorch" if "G_ema" in content else "unknown"


def _hashes(value: Any) -> Iterator[str]:
    """Yields the SHA-256 of the source of every object in a tree."""
    if isinstance(value, PersistentObject):
        if value.module_src_sha256:
            yield value.module_src_sha256
        value = value.state
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _hashes(item)


def _tensorflow_hashes(network: TensorFlowNetwork) -> Iterator[str]:
    yield network.module_src_sha256
    for part in network.components.values():
        yield from _tensorflow_hashes(part)


def _from_safetensors(data: bytes, source: str, budget: Budget) -> Contents:
    header, end = _header(data, budget)
    metadata = header.pop("__metadata__", {})
    if "config" in metadata and "values" in metadata:
        remedy = "Pass a network-snapshot-* or network-best file of the same folder, or this one as train.py --resume."
        raise RefusedFileError(source, "a training state, from which a run goes on", remedy)
    if metadata.get("format_version") != FORMAT_VERSION:
        raise RefusedFileError(
            source,
            f"safetensors of format_version {str(metadata.get('format_version'))[:20]}, not {FORMAT_VERSION}",
            "Pass a file that this project's save_snapshot wrote.",
        )
    described, extras, provenance = (read_json(metadata[part], budget) for part in ("networks", "extras", "provenance"))
    budget.spend(tensors=len(header), bytes=len(data) - end)
    weights: dict[str, dict[str, Tensor]] = {}
    for name, value in safetensors.torch.load(data).items():
        network, _, key = name.partition(".")
        weights.setdefault(network, {})[key] = value
    blueprints = {name: _described(entry, weights.get(name, {})) for name, entry in described.items()}
    contents = Contents(source, "stylegan-di safetensors", blueprints, dict(extras))
    contents.metadata, contents.weights_sha256 = _without_hash(provenance)
    return contents


def _header(data: bytes, budget: Budget) -> tuple[dict[str, Any], int]:
    """Returns the header of safetensors (8 bytes of length, then JSON) and the offset of the weights."""
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= len(data):
        raise ValueError(f"a header of {end - 8} bytes in a file of {len(data)}")
    header = read_json(data[8:end], budget)
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("a header that is no dict")
    return header, end


def _described(entry: Any, weights: dict[str, Tensor]) -> Blueprint | None:
    if entry is None:
        return None
    if not isinstance(entry["class_name"], str) or not isinstance(entry["init_args"], list):
        raise TypeError("a network without a class name or arguments")
    return Blueprint(entry["class_name"], tuple(entry["init_args"]), dict(entry["init_kwargs"]), weights)
