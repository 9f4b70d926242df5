"""Opens sources of images to convert: IDX files, CIFAR-10's archive, LSUN's databases, folders and zips of images."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from stylegan_di.data.cifar import is_cifar, read_cifar
from stylegan_di.data.files import ImageFiles, open_image
from stylegan_di.data.idx import IDX_IMAGES, find_idx_images, find_idx_labels, read_idx
from stylegan_di.data.labels import ImageLabels, Label, image_labels
from stylegan_di.data.lsun import Database, is_database
from stylegan_di.dnnlib.util import UserError
from stylegan_di.labels import is_name

CHUNK, CHUNK_DIGITS = 1000, 5  # images in a folder that only numbers them, and digits of its name
SHOWN = 50  # classes whose names are said


@dataclass(frozen=True)
class Source:
    """Images to convert: their names for error messages, their labels (None if unknown), and how to load one.

    `class_names` are those of the classes, () where they have none; `notes` are sentences of what was taken and left.
    """

    where: list[str]
    labels: Sequence[Label] | None
    load: Callable[[int], Image.Image]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def first(self, n: int) -> Source:
        """Keeps only the first n images."""
        return replace(self, where=self.where[:n], labels=None if self.labels is None else self.labels[:n])


def open_source(path: Path, *, split: str = "train", labels: bool | None = None) -> Source:
    """Opens a folder of IDX files, one IDX images file, CIFAR-10's tar, an LMDB, an image folder or a zip.

    Args:
        split: 'train' or 'test', for a folder of IDX files and for CIFAR-10.
        labels: True requires labels, False leaves them out, None takes them if there are any.
    """
    use_labels = labels is not False
    images = find_idx_images(path, split) if path.is_dir() else path if IDX_IMAGES in path.name else None
    if images is not None:
        source = _idx_source(images, use_labels)
    elif is_cifar(path):
        source = _cifar_source(path, split, use_labels)
    elif is_database(path):
        source = _database_source(path)
    else:
        source = _files_source(path, use_labels)
    if labels and source.labels is None:
        raise UserError(f"{path} has no labels; add dataset.json, an IDX labels file or a folder for each class.")
    return source


def _idx_source(images: Path, use_labels: bool) -> Source:
    pixels = read_idx(images, ndim=3)
    labels_path = find_idx_labels(images) if use_labels else None
    labels = None if labels_path is None else read_idx(labels_path, ndim=1).tolist()
    if labels is not None and len(labels) != len(pixels):
        raise UserError(f"{labels_path} has {len(labels)} labels, but {images} has {len(pixels)} images.")
    where = [f"{images}:{index}" for index in range(len(pixels))]
    return Source(where, labels, lambda index: Image.fromarray(pixels[index]))


def _cifar_source(path: Path, split: str, use_labels: bool) -> Source:
    pixels, labels = read_cifar(path, split)
    where = [f"{path}:{split}:{index}" for index in range(len(pixels))]
    return Source(where, labels if use_labels else None, lambda index: Image.fromarray(pixels[index]))


def _database_source(path: Path) -> Source:
    database = Database(path)
    where = [database.where(index) for index in range(len(database))]
    return Source(where, None, lambda index: open_image(database.read(index), where[index]))


def _files_source(path: Path, use_labels: bool) -> Source:
    files = ImageFiles(path)
    names = files.image_names
    left = files.left_out()
    if not names:
        held = f" (but {left})" if left else ""
        raise UserError(f"{path} holds no images{held}; PNG, JPEG, BMP, WebP, TIFF, PPM, TGA and GIF files are read.")
    where = [files.where(name) for name in names]
    found, notes = _file_labels(files) if use_labels else (None, ())
    if left:
        notes = (f"left out, because they are no image files that are read: {left}", *notes)
    labels, class_names = (None, ()) if found is None else (found.labels, found.class_names)
    return Source(where, labels, lambda index: open_image(files.read(names[index]), where[index]), class_names, notes)


def _file_labels(files: ImageFiles) -> tuple[ImageLabels | None, tuple[str, ...]]:
    """Reads dataset.json, else numbers the folders below the common one as classes, in natural order; and says so.

    Raises:
        UserError: if only some of the images are in folders of classes.
    """
    if files.labels_name is not None:
        return image_labels(files), (f"labels of {files.where(files.labels_name)}",)
    folders = [PurePosixPath(name).parent for name in files.image_names]
    shared = len(PurePosixPath(posixpath.commonpath(folders)).parts)
    inside = [folder.parts[shared] for folder in folders if len(folder.parts) > shared]
    if not inside:
        return None, ()
    names = sorted(set(inside), key=natural_order)
    if unreadable := [name for name in names if not is_name(name)]:
        raise UserError(f"{files.path} has a class folder named {unreadable[0]!r}; rename it, or give --no-labels.")
    if _are_chunks(files.image_names, [folder.name for folder in folders]):
        return None, (f"the folders {names[0]} to {names[-1]} number the images and are no classes: no labels",)
    if len(inside) < len(folders):
        at = next(name for name, folder in zip(files.image_names, folders, strict=True) if len(folder.parts) <= shared)
        raise UserError(
            f"{files.where(at)} is beside the folders of classes ({', '.join(names[:3])}, ...), so it has no class: "
            "move it into one, or leave labels out (--no-labels)"
        )
    index = {name: number for number, name in enumerate(names)}
    mapping = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:SHOWN]))
    mapping += f", ... (class_names in dataset.json has all {len(names)})" if len(names) > SHOWN else ""
    return ImageLabels([index[name] for name in inside], tuple(names)), (f"classes by folder: {mapping}",)


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A key by which 'class10' comes after 'class9'."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts]


def _are_chunks(names: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether folders hold a thousand images each by number, as FFHQ's (01000/01234.png) and ours (00001/img00001234).

    Args:
        names: of the images.
        folders: the name of each one's folder.
    """
    for name, folder in zip(names, folders, strict=True):
        number = re.search(r"([0-9]{1,18})$", PurePosixPath(name).stem)
        if number is None or not folder.isdecimal() or len(folder) != CHUNK_DIGITS:
            return False
        if int(folder) not in (int(number[1]) // CHUNK, int(number[1]) // CHUNK * CHUNK):
            return False
    return True
