"""Make a data set in NVlabs' format from MNIST-like IDX files, a folder or a zip of images.

Written are PNGs without compression, `00000/img00000000.png` and on, and `dataset.json`; equal inputs give equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from dnnlib.util import UserError, atomic_file
from stylegan_di.data.files import ImageFiles, Label, open_image, read_labels
from stylegan_di.data.idx import find_idx_images, find_idx_labels, read_idx

TRANSFORMS = ("center-crop", "center-crop-wide", "pad")


@dataclass(frozen=True)
class Source:
    """Images to convert: their names for errors, their labels (None: none are known), and how to load one."""

    where: list[str]
    labels: Sequence[Label] | None
    load: Callable[[int], Image.Image]

    def first(self, n: int) -> Source:
        """The first n images only."""
        return Source(self.where[:n], None if self.labels is None else self.labels[:n], self.load)


def open_source(path: Path, *, split: str = "train", labels: bool | None = None) -> Source:
    """Tell a folder of IDX files, one IDX images file, an image folder and a zip apart.

    Args:
        split: 'train' or 'test', of a folder of IDX files.
        labels: True: insist on them; False: leave them out; None: take them where there are any.
    """
    images = find_idx_images(path, split) if path.is_dir() else path if "-idx3-" in path.name else None
    source = _files_source(path, labels is not False) if images is None else _idx_source(images, labels is not False)
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


def _files_source(path: Path, use_labels: bool) -> Source:
    files = ImageFiles(path)
    names = files.image_names
    if not names:
        raise UserError(f"{path} holds no images; PNG, JPEG, BMP, WebP, TIFF, PPM and TGA files are read.")
    where = [files.where(name) for name in names]
    labels = _file_labels(files) if use_labels else None
    return Source(where, labels, lambda index: open_image(files.read(names[index]), where[index]))


def _file_labels(files: ImageFiles) -> list[Label] | None:
    """Labels of dataset.json; without one, classes from the folders, sorted, below those that all images share (None
    unless every image lies in one of at least two)."""
    names = files.image_names
    if "dataset.json" in files.names:
        by_name = read_labels(files)
        missing = [] if by_name is None else [name for name in names if name not in by_name]
        if missing:
            raise UserError(f"{files.where('dataset.json')} has no label for {missing[0]!r}; add it or take no labels.")
        return None if by_name is None else [by_name[name] for name in names]
    folders = [PurePosixPath(name).parent for name in names]
    shared = len(PurePosixPath(posixpath.commonpath(folders)).parts)
    if any(len(folder.parts) <= shared for folder in folders):
        return None
    index = {name: number for number, name in enumerate(sorted({folder.parts[shared] for folder in folders}))}
    return [index[folder.parts[shared]] for folder in folders]


def convert_mode(image: Image.Image, channels: int | None, where: str) -> Image.Image:
    """Gray or RGB of 8 bits a channel, turned as EXIF says. channels: 1 or 3 to convert to, None to keep."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA", "LA", "RGBA"):
        gray = image.mode == "LA"
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        if lowest != 255:
            raise UserError(f"{where} is partly transparent; put it on a background first.")
        image = image.convert("L" if gray else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        raise UserError(f"{where} is a {image.mode} image; gray and RGB images of 8 bits a channel are read.")
    return image if channels is None else image.convert("L" if channels == 1 else "RGB")


def transform_image(image: Image.Image, transform: str | None, size: tuple[int, int] | None, where: str) -> Image.Image:
    """Bring an image to `size` (width, height); None keeps it.

    transform: None resizes the whole image; 'center-crop' resizes the largest crop of that shape;
    'center-crop-wide' does the same and puts it on a black square of the width; 'pad' adds black borders.
    """
    if size is None:
        return image
    if transform is None:
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    if transform == "pad":
        if image.width > size[0] or image.height > size[1]:
            raise UserError(f"{where} is {image.width}x{image.height}, too large to pad to {size[0]}x{size[1]}.")
        return _on_black(image, size)
    cropped = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return cropped if transform == "center-crop" else _on_black(cropped, (size[0], size[0]))


def _on_black(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


@contextmanager
def open_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Gives write(name, data); a zip (by its suffix) or folder appears at `path` when the block ends without error."""
    opened = _zip_dest(path) if path.suffix.lower() == ".zip" else _folder_dest(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with opened as write:
            yield write
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}. Give another place.") from error


@contextmanager
def _zip_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo's date is fixed: 1980


@contextmanager
def _folder_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists; give the name of a new folder or of a .zip file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write(name: str, data: bytes) -> None:
        file = temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    try:
        yield write
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert(
    source: Source,
    dest: Path,
    *,
    transform: str | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Write the data set `dest`, a .zip or a new folder; returns what the images are, such as '32x32 gray'.

    Args:
        transform, size: see `transform_image`.
        channels: 1 or 3 to convert to gray or RGB; None keeps.
        progress: called with the number of images done, after each.

    Raises UserError, naming the file, for an image that is unreadable, unlike the first, not square or of a side that
    is no power of two.
    """
    first = ""
    labels: list[tuple[str, Label]] = []
    with open_dest(dest) as write:
        for index, where in enumerate(source.where):
            image = transform_image(convert_mode(source.load(index), channels, where), transform, size, where)
            kind = f"{image.width}x{image.height} {'gray' if image.mode == 'L' else image.mode}"
            if image.width != image.height or image.width & (image.width - 1):
                raise UserError(
                    f"{where} becomes {kind}; images must be square, with a power of two for a side. "
                    "Give a resolution and a transform, center-crop or pad."
                )
            first = first or kind
            if kind != first:
                raise UserError(
                    f"{where} becomes {kind}, but {source.where[0]} {first}; give a resolution or channels."
                )
            name = f"{index // 1000:05d}/img{index:08d}.png"
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", compress_level=0)
            write(name, buffer.getvalue())
            if source.labels is not None:
                labels.append((name, source.labels[index]))
            progress(index + 1)
        write("dataset.json", json.dumps({"labels": labels or None}).encode())
    return first
