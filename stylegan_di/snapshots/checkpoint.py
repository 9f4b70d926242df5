"""Opens networks from every supported file format, and writes snapshots (`formats`, `writing`).

No file is trusted: its contents are checked before anything is built (`blueprint`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from stylegan_di import interfaces, zoo
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.labels import LabelLaw
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.snapshots.blueprint import CLASSES, build, class_name
from stylegan_di.snapshots.formats import Contents, open_contents
from stylegan_di.snapshots.writing import to_pickle, to_safetensors
from stylegan_di.students import STUDENTS
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.refiner import RefinerStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import StyleGAN3Student
from stylegan_di.teachers import TEACHERS
from stylegan_di.torch_utils.persistence import RefusedFileError

Model = TypeVar("Model", bound="interfaces.Generator | interfaces.Denoiser")

MODELS = ("G_ema", "G", "ema")  # the entries to take where none is chosen, in order of preference


@dataclass
class Snapshot:
    """The contents of a network file.

    `source` is its name; `networks` are by entry ('G_ema', 'ema', ...), None where the file says None; `extras` are the
    other plain entries (training_set_kwargs or dataset_kwargs, a one-step student's sigma_init); `metadata` is the
    provenance.
    """

    source: str
    networks: dict[str, torch.nn.Module | None]
    extras: dict[str, Any]
    metadata: dict[str, Any]


def load_generator(name_path_or_url: str | os.PathLike[str], which: str | None = None) -> interfaces.Generator:
    """Opens the generator of a network file, in evaluation mode, without gradients, on the CPU.

    Args:
        name_path_or_url: a .pkl or .safetensors file, a URL, a known name (`stylegan_di.zoo`), or hf:owner/name[/file].
        which: the entry to take; by default the first of G_ema, G and ema, or the only network.

    Raises:
        RefusedFileError: if the file is no network file or holds no generator.
        UserError: if the file, or the entry in it, does not exist.
    """
    contents = open_contents(name_path_or_url)
    return as_generator(_build_snapshot(contents, _meant(contents, which)))


def load_denoiser(name_path_or_url: str | os.PathLike[str], which: str | None = None) -> interfaces.Denoiser:
    """Opens the teacher of a network file, in evaluation mode, without gradients, on the CPU; see `load_generator`."""
    contents = open_contents(name_path_or_url)
    return as_denoiser(_build_snapshot(contents, _meant(contents, which)))


def load_snapshot(name_path_or_url: str | os.PathLike[str], which: str | None = None) -> Snapshot:
    """Opens all networks of a file, or only the one named by `which`, and the other entries; see `load_generator`.

    EDM's loss_fn and augment_pipe, which only training uses, are left out.
    """
    contents = open_contents(name_path_or_url)
    return _build_snapshot(contents, contents.blueprints if which is None else _meant(contents, which))


def as_generator(snapshot: Snapshot) -> interfaces.Generator:
    """Returns a snapshot's generator: G_ema, else G, else a one-step student's network.

    Raises:
        RefusedFileError: if it holds none, or several of which none is in MODELS.
    """
    found = _first(snapshot, STUDENTS)
    if found is not None:
        return found
    if (teacher := _first(snapshot, TEACHERS)) is not None:
        raise RefusedFileError(
            snapshot.source,
            f"a diffusion teacher ({', '.join(teacher.entries())!r} without sigma_init), not a generator",
            "Pass it as --teacher (load_denoiser), or distil it to one step first (stylegan-di train --kind=di "
            "--teacher). For a one-step student of another project, give its noise level: "
            "stylegan-di convert IN OUT --sigma-init=2.5.",
        )
    raise RefusedFileError(snapshot.source, f"no generator: {_listing(snapshot)}", "Pass a file with G_ema or ema.")


def as_denoiser(snapshot: Snapshot) -> interfaces.Denoiser:
    """Returns a snapshot's teacher.

    Raises:
        RefusedFileError: if it holds none, or several of which none is in MODELS.
    """
    found = _first(snapshot, TEACHERS)
    if found is not None:
        return found
    student = _first(snapshot, {"one-step": OneStepStudent})
    raise RefusedFileError(
        snapshot.source,
        f"no diffusion model: {_listing(snapshot)}" if student is None else f"a {student.kind}",
        "Pass a generator as --gan-pkl or --network (load_generator), and an EDM network as --teacher or --transfer.",
    )


def as_gan(snapshot: Snapshot) -> StyleGAN2Student:
    """Returns a snapshot's GAN, for what needs a mapping network and its w.

    Raises:
        UserError: if it holds something else.
    """
    table: dict[str, type[StyleGAN2Student]] = {"stylegan2": StyleGAN2Student, "stylegan3": StyleGAN3Student}
    found = _first(snapshot, table)
    if found is None:
        raise UserError(
            f"--network={snapshot.source} is a {as_shown(snapshot).kind}, which has no w. Pass a StyleGAN2 or "
            "StyleGAN3 network, or use stylegan-di generate with --seeds"
        )
    return found


def as_of_w(snapshot: Snapshot) -> StyleGAN2Student | RefinerStudent:
    """Returns a snapshot's GAN, or its refiner, whose images are made of w and a label; see `as_gan`."""
    return _first(snapshot, {"refiner": RefinerStudent}) or as_gan(snapshot)


def as_model(snapshot: Snapshot) -> interfaces.Generator | interfaces.Denoiser:
    """Returns a teacher if the snapshot holds a denoiser that is no one-step student, else a generator."""
    return _first(snapshot, TEACHERS) or as_generator(snapshot)


def as_shown(snapshot: Snapshot) -> interfaces.Generator:
    """Returns what generates a snapshot's images: its generator, or its teacher with a sampler."""
    model = as_model(snapshot)
    return DiffusionSampler(model) if isinstance(model, interfaces.Denoiser) else model


def _first(snapshot: Snapshot, table: Mapping[str, type[Model]]) -> Model | None:
    """Wraps the chosen network in the table's first class that accepts it, in evaluation mode; None if none does."""
    name, network = _only(snapshot)
    extras = snapshot.extras if name == "ema" else {}  # the extras describe that entry
    for role in table.values():
        try:
            with untrusted(snapshot.source):
                found = role.of_network(network, extras)
        except RefusedFileError:
            raise
        except UserError as error:
            raise RefusedFileError(snapshot.source, str(error)) from None
        if found is not None:
            with untrusted(snapshot.source):
                found.known_labels = _known_labels(snapshot, found.label_dim)
            return cast("Model", found.eval())
    return None


def _known_labels(snapshot: Snapshot, label_dim: int) -> LabelLaw | None:
    """How often labels occur, as the file says; of a known network, what its classes are called; None if unknown."""
    if label_dim and (entry := snapshot.extras.get("label_law")) is not None:
        return LabelLaw.of_entry(entry, label_dim)
    names = zoo.class_names(snapshot.source)
    return LabelLaw.uniform(label_dim, names) if label_dim and len(names) == label_dim else None


def _has_role(network: torch.nn.Module | None) -> bool:
    """Whether a student or a teacher can be made of a network."""
    student = any(role.of_network(network, {}) is not None for role in STUDENTS.values())
    return student or any(role.of_network(network, {}) is not None for role in TEACHERS.values())


def _only(snapshot: Snapshot) -> tuple[str, torch.nn.Module | None]:
    """Returns the name and network to use: the first of MODELS, else the only generator or denoiser, else None."""
    found = {name: network for name, network in snapshot.networks.items() if _has_role(network)}
    for name in MODELS:
        if name in found:
            return name, found[name]
    if len(found) > 1:
        remedy = "Choose one with --which, or take it out with stylegan-di convert IN OUT --which=NAME."
        raise RefusedFileError(snapshot.source, f"several networks: {', '.join(found)[:200]}", remedy)
    return next(iter(found.items()), ("", None))


def _listing(snapshot: Snapshot) -> str:
    names = [*snapshot.networks, *snapshot.extras]
    return f"its entries are {', '.join(names)[:200]}" if names else "it is empty"


def save_snapshot(
    path: str | os.PathLike[str],
    networks: Mapping[str, torch.nn.Module | None],
    *,
    extras: Mapping[str, Any],
    metadata: Mapping[str, Any],
    target: str | None = None,
) -> None:
    """Writes networks atomically to a .pkl that NVlabs' tools open or to a .safetensors file.

    Networks are written in evaluation mode, without gradients, on the CPU, whatever their present mode and device.

    Args:
        path: the file to write; its suffix determines the format.
        networks: by entry: G, D, G_ema, augment_pipe (NVlabs' loader wants the first three), or ema.
        extras: other entries: training_set_kwargs or dataset_kwargs, a one-step student's sigma_init, augment_pipe.
        metadata: the provenance, each value a str or float (command, teacher, kimg, ...).
        target: the one repository for whose classes a .pkl of StyleGANs is written, one of `writing.TARGETS`; by
            default it opens in all.

    Raises:
        UserError: if the suffix or the target is unknown.
        TypeError: if an entry cannot be written.
    """
    for name, network in networks.items():
        if network is not None and class_name(network) is None:
            raise TypeError(f"{name}: a {type(network).__name__} is none of {', '.join(CLASSES)}")
    suffix = Path(path).suffix
    if suffix == ".pkl":
        data = to_pickle(networks, extras, metadata, target)
    elif suffix == ".safetensors":
        data = to_safetensors(networks, extras, metadata)
    else:
        raise UserError(f"{path}: snapshots end in .pkl or .safetensors, not {suffix!r}")
    atomic_write(path, data)


# Reading.


def _meant(contents: Contents, which: str | None) -> set[str]:
    """Returns the entries to build: the one chosen, else the first of MODELS, else all."""
    there = [name for name, blueprint in contents.blueprints.items() if blueprint is not None]
    if which is not None and which not in there:
        raise UserError(f"{contents.source}: --which={which} is not in it; its networks are {', '.join(there)[:200]}")
    if which is not None:
        return {which}
    first = next((name for name in MODELS if name in there), None)
    return set(there) if first is None else {first}


def _build_snapshot(contents: Contents, names: Collection[str]) -> Snapshot:
    """Builds the named networks of a snapshot; the others are None."""
    networks: dict[str, torch.nn.Module | None] = {}
    for name, blueprint in contents.blueprints.items():
        networks[name] = None
        if blueprint is not None and name in names:
            networks[name] = build(blueprint, name, contents.source)
    return Snapshot(contents.source, networks, contents.extras, contents.metadata)
