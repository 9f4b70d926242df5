"""Opens sources of images to convert: IDX files, CIFAR-10's archive, LSUN's databases, folders and zips of images."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from stylegan_di.data.cifar import is_cifar, read_cifar
from stylegan_di.data.files import ImageFiles, open_image
from stylegan_di.data.idx import IDX_IMAGES, find_idx_images, find_idx_labels, read_idx
from stylegan_di.data.labels import LABELS_FILE, Label, image_labels
from stylegan_di.data.lsun import Database, is_database
from stylegan_di.dnnlib.util import UserError


@dataclass(frozen=True)
class Source:
    """Images to convert: their names for error messages, their labels (None if unknown), and how to load one."""

    where: list[str]
    labels: Sequence[Label] | None
    load: Callable[[int], Image.Image]

    def first(self, n: int) -> Source:
        """Keeps only the first n images."""
        return Source(self.where[:n], None if self.labels is None else self.labels[:n], self.load)


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
    if not names:
        raise UserError(f"{path} holds no images; PNG, JPEG, BMP, WebP, TIFF, PPM and TGA files are read.")
    where = [files.where(name) for name in names]
    labels = _file_labels(files) if use_labels else None
    return Source(where, labels, lambda index: open_image(files.read(names[index]), where[index]))


def _file_labels(files: ImageFiles) -> list[Label] | None:
    """Reads dataset.json, else numbers the folders below the common one as classes; None if some image is in none."""
    if LABELS_FILE in files.names:
        return image_labels(files)
    folders = [PurePosixPath(name).parent for name in files.image_names]
    shared = len(PurePosixPath(posixpath.commonpath(folders)).parts)
    if any(len(folder.parts) <= shared for folder in folders):
        return None
    index = {name: number for number, name in enumerate(sorted({folder.parts[shared] for folder in folders}))}
    return [index[folder.parts[shared]] for folder in folders]
