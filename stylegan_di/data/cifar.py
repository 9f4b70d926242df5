"""Reads CIFAR-10 as published, cifar-10-python.tar.gz: batches of 10,000 images in Python 2 pickles, read as data.

A batch is {'data': uint8 [N,3072], each row a 3x32x32 image; 'labels': N class indices; ...}. Krizhevsky 2009,
https://www.cs.toronto.edu/~kriz/cifar.html. The archive is read once, in memory, up to a size limit, by member names.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.persistence import RefusedFileError, read_pickle

BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
CLASSES = 10
SHAPE = (3, 32, 32)
MAX_ARCHIVE_BYTES = 1 << 29  # unpacked; CIFAR-10 has 178 MB

_REMEDY = "Download cifar-10-python.tar.gz again from https://www.cs.toronto.edu/~kriz/cifar.html."


def is_cifar(path: Path) -> bool:
    """Whether a source's name says that it is CIFAR-10's archive."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def read_cifar(path: Path, split: str) -> tuple[np.ndarray, list[int]]:
    """Reads images uint8 [N,32,32,3] and N classes of a split, 'train' or 'test'; UserError if the file is wrong."""
    batches = _read_members(path, BATCHES[split])
    images: list[np.ndarray] = []
    labels: list[int] = []
    for name in BATCHES[split]:
        if name not in batches:
            raise UserError(f"{path} holds no {name} (split {split}). {_REMEDY}")
        pixels, classes = _parse_batch(batches[name], f"{path}:{name}")
        images.append(pixels)
        labels += classes
    return np.ascontiguousarray(np.concatenate(images).transpose(0, 2, 3, 1)), labels


def _read_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads the named files from any folder of the archive; skips links, sparse files and everything else."""
    found: dict[str, bytes] = {}
    with (
        untrusted(str(path), remedy=_REMEDY),
        _unpacked(path) as file,
        tarfile.open(fileobj=file, mode="r|") as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name).name
            if not member.isreg() or member.issparse() or name not in names:
                continue
            if name in found:
                raise UserError(f"{path} holds {name} twice. {_REMEDY}")
            content = archive.extractfile(member)
            assert content is not None  # because it is a regular file
            found[name] = content.read()
    return found


@contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    """Opens a tar file that may be gzipped."""
    with open(path, "rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if gzipped else raw as file:
            yield _Bounded(file, path)


class _Bounded:
    """Reads from a file, up to MAX_ARCHIVE_BYTES in total."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path, self.count = file, path, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        if self.count > MAX_ARCHIVE_BYTES:
            raise UserError(f"{self.path} unpacks to more than {MAX_ARCHIVE_BYTES} bytes. {_REMEDY}")
        return data


def _parse_batch(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Returns images uint8 [N,3,32,32] and N class indices."""
    try:
        batch = read_pickle(data, where, python2=True)
    except RefusedFileError as error:
        raise UserError(f"{where} is not a CIFAR-10 batch: found {error.found}. {_REMEDY}") from None
    pixels = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    row = int(np.prod(SHAPE))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != row:
        raise UserError(f"{where} has no 'data' of uint8 [N, {row}]. {_REMEDY}")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise UserError(f"{where} has no 'labels', a list of classes from 0 to {CLASSES - 1}. {_REMEDY}")
    if len(labels) != len(pixels):
        raise UserError(f"{where} has {len(labels)} labels, but {len(pixels)} images. {_REMEDY}")
    return pixels.reshape(-1, *SHAPE), labels
