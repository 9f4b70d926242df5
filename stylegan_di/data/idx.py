"""Reads the IDX files of MNIST and Fashion-MNIST, often gzipped: two zero bytes, a type byte (8: uint8), the number of
dimensions, the sizes as big-endian uint32, the values."""

from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np

from stylegan_di.data.files import MAX_FILE_BYTES, MAX_RATIO
from stylegan_di.dnnlib.untrusted import Budget, untrusted
from stylegan_di.dnnlib.util import UserError

SPLITS = {"train": "train", "test": "t10k"}
IDX_IMAGES = "-idx3-"  # in the names of images files
MNIST, PADDED_MNIST = (28, 28), (32, 32)  # sizes of MNIST's images, as they are and as NVlabs' tools pad them


def find_idx_images(folder: Path, split: str) -> Path | None:
    """Finds the images file of a split ('train' or 'test'); None if the folder has no IDX images at all."""
    found = {path.name: path for path in sorted(folder.glob("*-images-idx3-ubyte*"))}
    if not found:
        return None
    for suffix in ("", ".gz"):
        path = found.get(f"{SPLITS[split]}-images-idx3-ubyte{suffix}")
        if path is not None:
            return path
    raise UserError(f"{folder} has no {SPLITS[split]}-images-idx3-ubyte (split {split}), but {', '.join(found)}.")


def find_idx_labels(images: Path) -> Path | None:
    """Finds the labels file beside an images file, gzipped or not; None if there is none."""
    name = images.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    candidates = [images.with_name(name), images.with_name(name + ".gz")]
    return next((path for path in candidates if path.is_file() and path != images), None)


def read_idx(path: str | os.PathLike[str], ndim: int) -> np.ndarray:
    """Returns the values uint8 of an IDX file of `ndim` dimensions; UserError, naming the file, for any other file."""
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with untrusted(str(path), remedy="Was it downloaded completely?"), opener(path, "rb") as file:
        header = file.read(4 + 4 * ndim)
        if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
            raise UserError(f"{path} is not an IDX file of {ndim}-dimensional uint8 data; download it again.")
        shape = struct.unpack(f">{ndim}I", header[4:])
        if not 0 < math.prod(shape) <= 4 * MAX_FILE_BYTES:
            raise UserError(f"{path} claims the shape {list(shape)}; up to {4 * MAX_FILE_BYTES} values are read.")
        Budget(MAX_RATIO * path.stat().st_size).spend(bytes=math.prod(shape))
        data = file.read(math.prod(shape) + 1)
    if len(data) != math.prod(shape):
        raise UserError(f"{path} holds {len(data)} values or more; its shape {list(shape)} needs {math.prod(shape)}.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
