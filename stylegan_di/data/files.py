"""Image files in a folder or a zip, read by name and never extracted, and the labels of `dataset.json`.

Format (that of NVlabs' stylegan2-ada-pytorch and edm): images sorted by name; `dataset.json` at the top holds
`{"labels": [["00000/img00000000.png", 3], ...]}`, a class index or a list of floats for each image, or
`{"labels": null}`. Files come from strangers: sizes, names and values are checked before they are believed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.util import UserError

# Raster formats that PIL decodes by itself (its EPS reader, for one, would start another program).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "TGA")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".tga"})

MAX_FILE_BYTES = 1 << 28
MAX_PIXELS = 8192 * 8192  # below PIL's own limit against decompression bombs
MAX_CLASSES = 100_000

Label = int | list[float]


class ImageFiles:
    """The files of a folder or zip. A zip is opened anew in every process: forked workers would share its offset.

    Args:
        path: folder or .zip file.

    Raises UserError for a path that is missing or neither, a damaged or encrypted zip, entries named twice or
    named outside the archive, links that leave the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        if self.path.is_dir():
            self.is_zip = False
            names = list(_folder_names(self.path))
        elif self.path.is_file() and self.path.suffix.lower() == ".zip":
            self.is_zip = True
            names = _zip_names(self.path)
        elif self.path.exists():
            raise UserError(f"{self.path} is neither a folder nor a .zip file; give one that holds images.")
        else:
            raise UserError(f"{self.path} does not exist; give a folder or a .zip file of images.")
        self.names = frozenset(names)
        self.image_names = sorted(n for n in names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_pid": -1}

    def where(self, name: str) -> str:
        """How an error calls the file."""
        return f"{self.path}:{name}" if self.is_zip else str(self.path / name)

    def fingerprint(self) -> str:
        """Where the images are, and their files' (the zip's) sizes and times of change, hashed."""
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for path in [self.path] if self.is_zip else [self.path / name for name in self.image_names]:
            status = path.stat()
            digest.update(f"/{path.name}/{status.st_size}/{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of one file; UserError where it is damaged, unreadable or larger than MAX_FILE_BYTES."""
        try:
            archive = self._archive() if self.is_zip else None
            size = archive.getinfo(name).file_size if archive else (self.path / name).stat().st_size
            if size > MAX_FILE_BYTES:
                raise UserError(f"{self.where(name)} is {size} bytes; files up to {MAX_FILE_BYTES} are read.")
            return archive.read(name) if archive else (self.path / name).read_bytes()
        except UserError:
            raise
        except Exception as error:  # zipfile raises many types on damaged data: BadZipFile, zlib.error, EOFError, ...
            raise UserError(f"{self.where(name)} cannot be read: {error}. Make the data set anew.") from error

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip


def _hidden(name: str) -> bool:
    """Whether the file is an operating system's, such as macOS's `__MACOSX/._a.png`."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _folder_names(root: Path) -> Iterator[str]:
    inside = root.resolve()
    for folder, subfolders, files in os.walk(root):
        for entry in (Path(folder, name) for name in [*subfolders, *files]):
            name = entry.relative_to(root).as_posix()
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                raise UserError(f"{entry} is a link out of the data set, to {entry.resolve()}; copy the file there.")
            if entry.is_file() and not _hidden(name):
                yield name


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable zip file: {error}. Was it copied completely?") from error
    for entry in entries:
        if entry.flag_bits & 1:
            raise UserError(f"{path}:{entry.filename} is encrypted; give a zip file without a password.")
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if ".." in parts.parts or parts.is_absolute():
            raise UserError(f"{path} has an entry named {entry.filename!r}, outside the archive; make the zip anew.")
    names = [entry.filename for entry in entries if not _hidden(entry.filename)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has {len(twice)} names more than once, such as {twice[0]!r}; make the zip anew.")
    return names


def open_image(data: bytes, where: str) -> Image.Image:
    """Decode an image file completely, in the file's own mode; `where` names it in errors.

    Raises UserError where the data is no image, truncated or damaged, or larger than MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return image
        size = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error)
    except Exception as error:  # PIL's decoders raise nearly any type on damaged data
        raise UserError(f"{where} ({len(data)} bytes) is no readable image: {error}. Replace or remove it.") from error
    raise UserError(f"{where} is too large an image ({size}); up to {MAX_PIXELS} pixels are read.")


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode a gray or RGB image file of 8 bits a channel to uint8 [C,H,W]; `where` names it in errors."""
    image = open_image(data, where)
    if image.mode not in ("L", "RGB"):
        raise UserError(
            f"{where} is a {image.mode} image; gray (L) and RGB images of 8 bits a channel are accepted. "
            "Convert the data set with tools/dataset_tool.py."
        )
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_labels(files: ImageFiles) -> dict[str, Label] | None:
    """Labels of dataset.json by image name, checked one by one; None if there is no such file or it has none."""
    if "dataset.json" not in files.names:
        return None
    where = files.where("dataset.json")
    try:
        content = json.loads(files.read("dataset.json"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}. Make the data set anew.") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f'{where} has no "labels"; expected {{"labels": [[name, class], ...]}} or {{"labels": null}}.')
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise UserError(f'{where}: "labels" is a {type(pairs).__name__}; expected a list of [name, class] or null.')
    labels: dict[str, Label] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"{where}: the entry {_short(pair)} is not a pair [name, class].")
        name = pair[0].replace("\\", "/")
        if name in labels:
            raise UserError(f"{where} labels {name!r} twice; keep one of the entries.")
        labels[name] = _checked_label(pair[1], f"{where}: the label of {name!r}")
    return labels


def _checked_label(value: Any, where: str) -> Label:
    if type(value) is int:
        if not 0 <= value < MAX_CLASSES:
            raise UserError(f"{where} is {value}; class indices are 0 to {MAX_CLASSES - 1}.")
        return value
    if isinstance(value, list) and 0 < len(value) <= MAX_CLASSES and all(type(v) in (int, float) for v in value):
        if not all(abs(v) < 3e38 for v in value):  # false for NaN too
            raise UserError(f"{where} is {_short(value)}; its numbers must be finite.")
        return [float(v) for v in value]
    raise UserError(f"{where} is {_short(value)}; expected a class index or a list of numbers.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
