"""Checks a whole data set: reports every file that a training would refuse, not only the first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stylegan_di.data.dataset import describe_shape
from stylegan_di.data.files import ImageFiles, decode_image
from stylegan_di.data.labels import Label, image_labels
from stylegan_di.dnnlib.progress import counted
from stylegan_di.dnnlib.util import UserError


@dataclass
class Findings:
    """The result of a check: number of images, their commonest kind ('32x32 gray'), their labels, and what is wrong.

    `notes` are sentences of what is not wrong, but may not be meant.
    """

    images: int = 0
    kind: str = ""
    labels: str = "no labels"
    notes: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def check_dataset(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> Findings:
    """Reads every image and label of a folder or zip, in NVlabs' format.

    Args:
        progress: called after each image with the number done and the total.
    """
    findings = Findings()
    complain = findings.complaints.append
    try:
        files = ImageFiles(path, complain)
    except UserError as error:
        complain(str(error))
        return findings
    found = image_labels(files, complain)
    if found is not None and found.labels:
        findings.labels = describe_labels(found.labels)
        findings.notes += notes_on_labels(found.labels)
    if left := files.left_out():
        findings.notes.append(f"left out, because they are no image files that are read: {left}")
    shapes: dict[str, tuple[int, ...]] = {}
    for done, name in enumerate(files.image_names, start=1):
        try:
            shapes[name] = decode_image(files.read(name), files.where(name)).shape
        except UserError as error:
            complain(str(error))
        progress(done, len(files.image_names))
    findings.images = len(files.image_names)
    if not findings.images:
        complain(f"{files.path} holds no images; make a data set with stylegan-di dataset.")
    if shapes:
        findings.kind = _check_shapes(files, shapes, findings)
    return findings


def describe_labels(labels: Sequence[Label]) -> str:
    """'10 classes' or 'labels of 3 numbers'; as in a training, the largest class index gives the number of classes."""
    if isinstance(labels[0], list):
        return f"labels of {len(labels[0])} numbers"
    return counted(max(label for label in labels if isinstance(label, int)) + 1, "class", "classes")


def notes_on_labels(labels: Sequence[Label]) -> list[str]:
    """What may not be meant: classes of which there is no image, as where classes are numbered from 1."""
    present = {label for label in labels if isinstance(label, int)}
    empty = sorted(set(range(max(present, default=-1) + 1)) - present)
    if not empty:
        return []
    listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return [f"no image is of class {listed}: number the classes from 0 without gaps if that is not meant"]


def _check_shapes(files: ImageFiles, shapes: dict[str, tuple[int, ...]], findings: Findings) -> str:
    """Complains unless all images have one shape, and a square's side is a power of two; returns the commonest."""
    complain = findings.complaints.append
    ((common, _),) = Counter(shapes.values()).most_common(1)
    kind = describe_shape(common)
    _, height, width = common
    if width != height:
        findings.notes.append(f"images of {kind} are not square: a denoiser can be trained on them, but no GAN")
    elif width & (width - 1):
        complain(
            f"{files.path} holds images of {kind}; they must be square, and their side a power of two. "
            "Convert them with stylegan-di dataset."
        )
    for name, shape in shapes.items():
        if shape != common:
            complain(
                f"{files.where(name)} is {describe_shape(shape)}, but most images are {kind}; all must have one shape. "
                "Remove it, or convert them with stylegan-di dataset."
            )
    return kind
