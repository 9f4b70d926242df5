"""Makes a data set in NVlabs' format from the images of a source (`sources`).

It writes uncompressed PNGs, from `00000/img00000000.png` on, and `dataset.json`; equal inputs give equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from stylegan_di.data.files import LABELS_FILE, MAX_PIXELS, open_image
from stylegan_di.data.labels import Label
from stylegan_di.data.sources import Source
from stylegan_di.dnnlib.util import UserError, atomic_file

TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal", "pad", "letterbox")
DEEP = ("I;16", "I;16B", "I;16L", "I")  # modes of gray images of more than 8 bits


def convert_mode(
    image: Image.Image,
    channels: int | None,
    where: str,
    *,
    background: tuple[int, int, int] | None = None,
    white: int | None = None,
) -> Image.Image:
    """Converts to gray or RGB of 8 bits per channel.

    Args:
        channels: 1 or 3, or None to keep.
        background: colour (r, g, b) behind transparent parts; None refuses these.
        white: the value of a 16-bit gray image that becomes 255; None refuses these.
    """
    if image.mode in ("P", "PA", "LA", "RGBA"):
        gray = image.mode == "LA" and (background is None or len(set(background)) == 1)
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        if lowest != 255:
            if background is None:
                raise UserError(f"{where} is partly transparent; say what is behind it, such as --alpha=white.")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
        image = image.convert("L" if gray else "RGB")
    elif image.mode in DEEP:
        if white is None:
            raise UserError(
                f"{where} is a gray image of 16 bits; say which value is white: --white=65535, or 4095 for 12 bits."
            )
        pixels = np.asarray(image).astype(np.float64) * (255 / white)
        image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif image.mode not in ("L", "RGB"):
        raise UserError(f"{where} is a {image.mode} image; gray and RGB images of 8 bits per channel are read.")
    return image if channels is None else image.convert("L" if channels == 1 else "RGB")


def transform_image(image: Image.Image, transform: str | None, size: tuple[int, int] | None, where: str) -> Image.Image:
    """Brings an image to `size` (width, height); None keeps its size.

    transform: None resizes the whole image; 'center-crop' resizes the largest crop of that shape;
    'center-crop-wide' does the same and puts it on a black square of that width; 'center-crop-dhariwal' resizes the
    shorter side (halving by box, then bicubic) and crops, as for ADM's and EDM2's ImageNet; 'pad' adds black borders;
    'letterbox' makes the image as large as fits, and adds black borders.
    """
    if size is None:
        return image
    if transform is None:
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    if transform == "pad":
        if image.width > size[0] or image.height > size[1]:
            raise UserError(f"{where} is {image.width}x{image.height}, too large to pad to {size[0]}x{size[1]}.")
        return _on_black(image, size)
    if transform == "letterbox":
        scale = min(size[0] / image.width, size[1] / image.height)
        fitting = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return _on_black(image.resize(fitting, Image.Resampling.LANCZOS), size)
    if transform == "center-crop-dhariwal":
        return _crop_after_resizing(image, size[0], where)
    cropped = _largest_crop(image, size).resize(size, Image.Resampling.LANCZOS)
    return cropped if transform == "center-crop" else _on_black(cropped, (size[0], size[0]))


def _largest_crop(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Crops the largest central part that has the proportions of `shape`, in whole pixels."""
    scale = min(image.width / shape[0], image.height / shape[1])
    width, height = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_after_resizing(image: Image.Image, side: int, where: str) -> Image.Image:
    """Resizes an image's shorter side to `side`, then crops the central square (arXiv 2105.05233)."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise UserError(f"{where} is {image.width}x{image.height}, too oblong to be resized to {width}x{height}.")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _on_black(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new(image.mode, size)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def load_picture(path: Path, side: int, channels: int) -> np.ndarray:
    """Reads an image file and resizes its largest central square to uint8 [channels,side,side]; may raise UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give an image file.") from None
    image = convert_mode(open_image(data, str(path)), channels, str(path))
    pixels = np.asarray(transform_image(image, "center-crop", (side, side), str(path)))
    return pixels.reshape(side, side, channels).transpose(2, 0, 1).copy()


@contextmanager
def open_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yields write(name, data); the zip (by its suffix) or folder appears at `path` if the block ends without error."""
    opened = _zip_dest(path) if path.suffix.lower() == ".zip" else _folder_dest(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with opened as write:
            yield write
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}. Give another path.") from error


@contextmanager
def _zip_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo's date is fixed: 1980


@contextmanager
def _folder_dest(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists; give the name of a new folder or of a .zip file.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")

    def write(name: str, data: bytes) -> None:
        file = temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    temporary.mkdir()
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
    background: tuple[int, int, int] | None = None,
    white: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Writes the data set `dest`, a .zip or a new folder; returns the kind of its images, such as '32x32 gray'.

    Args:
        transform, size: see `transform_image`.
        channels: 1 or 3 to convert to gray or RGB, None to keep.
        background, white: see `convert_mode`.
        progress: called after each image with the number done.

    Raises UserError, naming the file, for an image that is unreadable, differs in kind from the first, is not square
    though no size is given, or whose side as a square is not a power of two.
    """
    first = ""
    labels: list[tuple[str, Label]] = []
    with open_dest(dest) as write:
        for index, where in enumerate(source.where):
            image = convert_mode(source.load(index), channels, where, background=background, white=white)
            image = transform_image(image, transform, size, where)
            kind = f"{image.width}x{image.height} {'gray' if image.mode == 'L' else image.mode}"
            square = image.width == image.height
            if (square and image.width & (image.width - 1)) or (size is None and not square):
                as_is = "" if square else f"; or the resolution {image.width}x{image.height}, for denoisers alone"
                raise UserError(
                    f"{where} becomes {kind}; images must be square, and their side a power of two. "
                    f"Give a resolution and a transform, center-crop, letterbox or pad{as_is}."
                )
            first = first or kind
            if kind != first:
                same_size = kind.split()[0] == first.split()[0]
                remedy = "give channels, 1 or 3, for all" if same_size else "give a resolution"
                raise UserError(f"{where} becomes {kind}, but {source.where[0]} {first}; {remedy}.")
            name = f"{index // 1000:05d}/img{index:08d}.png"
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", compress_level=0)
            write(name, buffer.getvalue())
            if source.labels is not None:
                labels.append((name, source.labels[index]))
            progress(index + 1)
        names = {"class_names": source.class_names} if source.class_names else {}
        write(LABELS_FILE, json.dumps({"labels": labels or None, **names}).encode())
    return first
