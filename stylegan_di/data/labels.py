"""Reads the labels of a data set's images from `dataset.json`: a class index or a list of numbers for each image.

    {"labels": [["00000/img00000000.png", 3], ...]}    or    {"labels": null}

An entry "class_names", a list of texts, says what the classes are called; NVlabs' tools do without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stylegan_di.data.files import Complain, ImageFiles, refuse
from stylegan_di.dnnlib.untrusted import read_json, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.labels import is_name

MAX_CLASSES = 100_000

Label = int | list[float]


@dataclass(frozen=True)
class ImageLabels:
    """The labels of all images, in their order, and the names of the classes, () where they have none."""

    labels: list[Label]
    class_names: tuple[str, ...] = ()


def image_labels(files: ImageFiles, complain: Complain = refuse) -> ImageLabels | None:
    """Returns the labels of all images; None if `dataset.json` is missing or says that there are none.

    Args:
        complain: called with each thing that is wrong; by default it raises the first as a UserError. If it returns
            after a complaint, the result is None.
    """
    if files.labels_name is None:
        return None
    complaints: list[str] = []

    def note(complaint: str) -> None:
        complaints.append(complaint)
        complain(complaint)

    where = files.where(files.labels_name)
    found = _read(files, files.labels_name, note)
    if found is None:
        return None
    by_name, class_names = found
    names = files.image_names
    for name in names:
        if name not in by_name:
            note(f"{where} has no label for {name!r}; add one, or use no labels.")
    for name in sorted(by_name.keys() - set(names)):
        note(f"{where} labels {name!r}, which does not exist; restore the file or remove its label.")
    labels = [(name, label) for name in names if (label := by_name.get(name)) is not None]
    for name, label in labels:
        if _kind(label) != _kind(labels[0][1]):
            note(f"{where}: {name!r} has {_kind(label)}, {labels[0][0]!r} has {_kind(labels[0][1])}; use one kind.")
    indices = [label for _, label in labels if isinstance(label, int)]
    if class_names and not max(indices, default=MAX_CLASSES) < len(class_names):
        note(f'{where}: "class_names" has {len(class_names)} names, which are not those of its labels; correct it.')
    return None if complaints else ImageLabels([label for _, label in labels], class_names)


def _read(
    files: ImageFiles, name: str, complain: Complain
) -> tuple[dict[str, Label | None], tuple[str, ...]] | None:
    """Returns the labels by name, None for a wrong one, and the names of the classes.

    None if the data set has no labels or the file is unusable. `name` is the labels' file; in a folder, images are
    named from there.
    """
    where, folder = files.where(name), name.rpartition("/")[0]
    try:
        budget = files.budget()
        with untrusted(where, remedy="Make the data set again."):
            content = read_json(files.read(name, budget), budget)
    except UserError as error:
        complain(str(error))
        return None
    if not isinstance(content, dict) or "labels" not in content:
        complain(f'{where} has no "labels"; expected {{"labels": [[name, class], ...]}} or {{"labels": null}}.')
        return None
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        complain(f'{where}: "labels" is a {type(pairs).__name__}; expected a list of [name, class] or null.')
        return None
    class_names = content.get("class_names") or []
    if not isinstance(class_names, list) or not all(map(is_name, class_names)):
        complain(f'{where}: "class_names" is {_short(class_names)}; expected a list of names, printable and short.')
        class_names = []
    labels: dict[str, Label | None] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            complain(f"{where}: the entry {_short(pair)} is not a pair [name, class].")
            continue
        image = f"{folder}/{pair[0]}" if folder else pair[0]
        image = image.replace("\\", "/")
        if image in labels:
            complain(f"{where} labels {image!r} twice; keep one of the entries.")
        wrong = _mistake(pair[1])
        if wrong:
            complain(f"{where}: the label of {image!r} {wrong}")
        labels[image] = None if wrong else pair[1]
    return labels, tuple(class_names)


def _mistake(value: Any) -> str | None:
    """Says what is wrong with a label; None if it is a class index or a list of finite numbers."""
    if type(value) is int:
        return None if 0 <= value < MAX_CLASSES else f"is {_short(value)}; class indices are 0 to {MAX_CLASSES - 1}."
    if isinstance(value, list) and 0 < len(value) <= MAX_CLASSES and all(type(v) in (int, float) for v in value):
        finite = all(abs(v) < 3e38 for v in value)  # false for NaN too
        return None if finite else f"is {_short(value)}; its numbers must be finite."
    return f"is {_short(value)}; expected a class index or a list of numbers."


def _kind(label: Label) -> str:
    return "a class index" if isinstance(label, int) else f"a vector of {len(label)} numbers"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
