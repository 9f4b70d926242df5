"""Describes a network file of unknown origin without running any code from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stylegan_di import zoo
from stylegan_di.dnnlib.util import UserError, sha256_of_file
from stylegan_di.snapshots.blueprint import Blueprint, build
from stylegan_di.snapshots.formats import AMBIGUOUS, Contents, open_contents
from stylegan_di.teachers.mixed import parse_teachers
from stylegan_di.torch_utils.persistence import RefusedFileError

MAX_TEACHER = 4096  # characters of the teachers named in a file that are looked at


@dataclass(frozen=True)
class StoredNetwork:
    """One network of a file; `numbers` counts its weights; `problem` says why it cannot be used, None if it can."""

    name: str
    class_name: str
    arguments: Mapping[str, Any]
    numbers: int
    problem: str | None

    def __str__(self) -> str:
        return f"{self.name} ({self.class_name}{_size_text(self.arguments)}, {self.numbers:,} numbers)"


@dataclass(frozen=True)
class Inspection:
    """What is known of a file; `origin` gives the terms of known names, '' for others; `warnings` are sentences."""

    source: str
    sha256: str
    size: int
    writer: str
    origin: str
    entries: tuple[StoredNetwork, ...]
    others: tuple[str, ...]
    metadata: Mapping[str, Any]
    embedded: tuple[str, ...]
    warnings: tuple[str, ...]

    def sentence(self) -> str:
        """Returns everything in one sentence."""
        parts = [f"{', '.join(map(str, self.entries)) or 'no networks'}, written by {self.writer}"]
        parts.append(f"SHA-256 {self.sha256[:16]}")
        if self.embedded:
            parts.append(f"embedded source not run ({len(self.embedded)} of it)")
        parts += [self.origin] if self.origin else []
        return "; ".join([*parts, *self.warnings]) + "."

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        entries = [vars(entry) | {"arguments": dict(entry.arguments)} for entry in self.entries]
        told = {key: value if _is_json(value) else str(value) for key, value in self.metadata.items()}
        return vars(self) | {"entries": entries, "metadata": told}


def inspect_file(name_path_or_url: str | os.PathLike[str], *, try_networks: bool = True) -> Inspection:
    """Inspects a network file.

    Args:
        name_path_or_url: see `checkpoint.load_generator`.
        try_networks: whether to build the networks from this project's classes, to find out if they can be used.

    Raises:
        RefusedFileError: if it is no network file.
    """
    source = os.fspath(name_path_or_url)
    contents = open_contents(source)
    path = zoo.resolve(source)
    entries = tuple(
        _entry(name, blueprint, source, try_networks)
        for name, blueprint in contents.blueprints.items()
        if blueprint is not None
    )
    return Inspection(
        source=source,
        sha256=sha256_of_file(path),
        size=path.stat().st_size,
        writer=contents.writer,
        origin=zoo.terms_of(source),
        entries=entries,
        others=(*contents.extras, *contents.objects),
        metadata=contents.metadata,
        embedded=contents.embedded,
        warnings=_warnings(contents, entries),
    )


def _is_json(value: Any) -> bool:
    """Whether JSON has such a number; any text is one of its."""
    return not isinstance(value, float) or math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value of a provenance, whose numbers are floats, is a whole number, such as a seed."""
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53


def _entry(name: str, blueprint: Blueprint, source: str, try_network: bool) -> StoredNetwork:
    problem = None
    if try_network:
        try:
            build(blueprint, name, source)
        except RefusedFileError as error:
            problem = f"{error.found}. {error.remedy}"
    arguments = dict(enumerate(blueprint.init_args)) | blueprint.init_kwargs
    numbers = sum(value.numel() for value in blueprint.weights.values())
    named = {str(key): value for key, value in arguments.items()}
    return StoredNetwork(name, blueprint.class_name[:80], named, numbers, problem)


def _size_text(arguments: Mapping[str, Any]) -> str:
    """Returns ' 32x32x3, 10 classes', as far as a network's arguments say so."""
    parts = []
    resolution, channels = arguments.get("img_resolution"), arguments.get("img_channels")
    if isinstance(resolution, int) and isinstance(channels, int):
        parts.append(f" {arguments.get('img_width') or resolution}x{resolution}x{channels}")
    classes = arguments.get("c_dim", arguments.get("label_dim", 0))
    if isinstance(classes, int) and classes > 0:
        parts.append(f" {classes} classes")
    return ",".join(parts)


def _warnings(contents: Contents, entries: tuple[StoredNetwork, ...]) -> tuple[str, ...]:
    found = [f"{entry.name} cannot be used: {entry.problem}" for entry in entries if entry.problem is not None]
    if contents.is_intact() is False:
        found.append("its weights are not those that were saved: their checksum differs; it is damaged or was altered")
    if "ema" in contents.blueprints and contents.writer in AMBIGUOUS and "sigma_init" not in contents.extras:
        found.append("nothing in it tells whether 'ema' is a teacher or a one-step student; it is taken as a teacher")
    for source in (*_teachers(contents.metadata), str(contents.metadata.get("gan_pkl", ""))):
        terms = zoo.terms_of(source)
        if terms and terms != zoo.SHIPPED:
            found.append(f"made from {source}, whose terms reach it: {terms}")
    return tuple(found)


def _teachers(metadata: Mapping[str, Any]) -> list[str]:
    """The teachers that a file's provenance names; none if it is not as this project writes it."""
    text = str(metadata.get("teacher", ""))
    if not text or len(text) > MAX_TEACHER:
        return []
    try:
        return [term.source for term in parse_teachers(text)]
    except UserError:
        return []
