"""Converts images between float [-1,1] and uint8 (NVlabs' convention), and writes single images and grids.

uint8 = clamp(127.5 x + 128, 0, 255) truncated; x = uint8 / 127.5 - 1.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stylegan_di.dnnlib.untrusted import RefusedFileError, brief
from stylegan_di.dnnlib.util import UserError, atomic_file


def to_uint8(images: Tensor) -> Tensor:
    """Converts float images of any shape, nominally in [-1,1], to uint8 in 0..255."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Converts uint8 images of any shape, in 0..255, to float32 in [-1,1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_rgb(images: Tensor) -> Tensor:
    """Returns images [N,1,H,W] or [N,3,H,W] of any dtype as [N,3,H,W]; the gray channel is repeated."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images of {images.shape[1]} channels; expected 1 or 3")
    return images.expand(-1, 3, -1, -1)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Reads a PNG of a run's folder, to be shown: gray (mode L) or RGB, without its alpha.

    Raises:
        RefusedFileError: if it is none, is damaged, or is so large that PIL warns of it (89 million pixels).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
                return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    except Exception as error:  # PIL's decoders raise nearly any type
        large = isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError)
        found = "more than 89 million pixels" if large else f"no picture that can be shown ({brief(error)})"
        raise RefusedFileError(os.fspath(path), found, "Remove it to go without it.") from error


def to_picture(image: Tensor) -> Image.Image:
    """Converts an image uint8 [C,H,W], C = 1 or 3, to Pillow's."""
    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Writes an image uint8 [C,H,W], C = 1 or 3, atomically, in the format of the path's suffix (.png, .jpg, ...)."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image is {image.dtype} {list(image.shape)}; expected uint8 [1,H,W] or [3,H,W]")
    path = Path(path)
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None or format not in Image.SAVE:
        raise UserError(f"{path}: images cannot be written as {path.suffix!r}; use a name that ends in .png or .jpg.")
    with atomic_file(path) as file:
        to_picture(image).save(file, format=format)


def save_grid(images: Tensor, path: str | os.PathLike[str], columns: int) -> None:
    """Writes images uint8 [N,C,H,W] as one image; see `tile` and `save_image`."""
    save_image(tile(images, columns), path)


def tile(images: Tensor, columns: int) -> Tensor:
    """Arranges images [N,C,H,W] row by row into one image [C,...]; an incomplete last row is filled with zeros."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = torch.cat([images, images.new_zeros([rows * columns - n, channels, height, width])])
    cells = cells.unflatten(0, [rows, columns]).permute(2, 0, 3, 1, 4)
    return cells.reshape(channels, rows * height, columns * width)
