"""Reads image files in a folder or a zip by name, without extracting them.

The format is that of NVlabs' stylegan2-ada-pytorch and edm: images sorted by name, and `dataset.json` (see `labels`).
Files may come from strangers, so sizes, names and values are checked before they are used.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stylegan_di.dnnlib.untrusted import Budget, OverBudget, open_untrusted, untrusted
from stylegan_di.dnnlib.util import UserError

# Raster formats that PIL decodes itself (its EPS reader, for example, would start another program).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "TGA", "GIF")
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".gif"}
)
LABELS_FILE = "dataset.json"

MAX_FILE_BYTES = 1 << 28
READING = b"/2"  # changes where the same files are read as other pixels, for what is cached of them
ENTRY_BYTES = 1000  # of memory that an entry of a folder or zip takes, with its label
MAX_PIXELS = 8192 * 8192  # below PIL's own limit against decompression bombs
MAX_RATIO = 200  # how many times its size a zip may unpack to, beyond MAX_FILE_BYTES; images hardly compress

Complain = Callable[[str], None]


def refuse(complaint: str) -> None:
    """The default handler of a complaint, which raises it as a UserError."""
    raise UserError(complaint)


class ImageFiles:
    """The files of a folder or zip. Every process opens a zip itself, because forked workers would share its offset.

    Args:
        path: folder or .zip file.
        complain: called with what is wrong with an entry; if it returns, the entry is left out.

    Raises UserError if the path is missing or neither, or the zip is damaged. The default `complain` also raises it for
    the first entry that is encrypted, named twice or outside the archive, or a link that is dead or leaves the folder.
    """

    def __init__(self, path: str | os.PathLike[str], complain: Complain = refuse) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        if self.path.is_dir():
            self.is_zip = False
            list_names: Callable[[Path, Complain], Iterator[str]] = _folder_names
        elif self.path.is_file() and self.path.suffix.lower() == ".zip":
            self.is_zip = True
            list_names = _zip_names
        elif self.path.exists():
            raise UserError(f"{self.path} is neither a folder nor a .zip file; give one that holds images.")
        else:
            raise UserError(f"{self.path} does not exist; give a folder or a .zip file of images.")
        with untrusted(str(self.path)):
            self.names = frozenset(list_names(self.path, complain))
        self.image_names = sorted(n for n in self.names if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES)
        self.labels_name = self._labels_name()

    def _labels_name(self) -> str | None:
        """The name of dataset.json: at the top, or in the folder that holds all images, as in a zip of a folder."""
        if LABELS_FILE in self.names:
            return LABELS_FILE
        inside = [name for name in self.names if PurePosixPath(name).name == LABELS_FILE]
        if len(inside) != 1 or not self.image_names:
            return None
        folder = inside[0].removesuffix(LABELS_FILE)
        return inside[0] if all(name.startswith(folder) for name in self.image_names) else None

    def left_out(self) -> str:
        """'2 files of .txt, 1 of .heic' for what is neither an image nor the labels; '' for nothing."""
        others = self.names - {*self.image_names, self.labels_name}
        counts = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others)
        listed = [f"{count} of {suffix[:20]}" for suffix, count in counts.most_common(5)]
        if len(counts) > len(listed):
            listed.append(f"{len(counts) - len(listed)} further kinds")
        return ", ".join(listed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_pid": -1}

    def where(self, name: str) -> str:
        """The file's name in error messages."""
        return f"{self.path}:{name}" if self.is_zip else str(self.path / name)

    def fingerprint(self) -> str:
        """A hash of the path, and of the sizes and modification times of the image files or of the zip."""
        digest = hashlib.sha256(os.fsencode(self.path.resolve()) + READING)
        for path in [self.path] if self.is_zip else [self.path / name for name in self.image_names]:
            status = path.stat()
            digest.update(os.fsencode(f"/{path.name}/{status.st_size}/{status.st_mtime_ns}"))
        return digest.hexdigest()

    def content(self) -> str:
        """A hash of the names and sizes of the images and of the labels: the same wherever the data set is moved."""
        names = [*self.image_names, *([self.labels_name] if self.labels_name else [])]
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}/{self._size(name)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def budget(self) -> Budget:
        """What reading the files that describe the images may cost."""
        others = self.names - set(self.image_names)
        size = self.path.stat().st_size if self.is_zip else sum((self.path / name).stat().st_size for name in others)
        return Budget(size + ENTRY_BYTES * len(self.image_names))

    def read(self, name: str, budget: Budget | None = None) -> bytes:
        """Returns the bytes of one file; UserError if it is damaged, unreadable or larger than MAX_FILE_BYTES.

        budget: the bytes are taken from it before they are read.
        """
        with untrusted(self.where(name), remedy="Make the data set again."):
            size = self._size(name)
            if size > MAX_FILE_BYTES:
                raise UserError(f"{self.where(name)} is {size} bytes; files up to {MAX_FILE_BYTES} are read.")
            if budget is not None:
                budget.spend(bytes=size)
            if self.is_zip:
                return self._archive().read(name)
            with open_untrusted(self.path / name) as (file, _):
                return file.read()

    def _size(self, name: str) -> int:
        """The size of one file in bytes, as it is unpacked."""
        return self._archive().getinfo(name).file_size if self.is_zip else (self.path / name).stat().st_size

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip


def _hidden(name: str) -> bool:
    """Whether the operating system made the file, such as macOS's `__MACOSX/._a.png`."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _folder_names(root: Path, complain: Complain) -> Iterator[str]:
    inside = root.resolve()

    def unreadable(error: OSError) -> None:
        complain(f"{error.filename} cannot be read: {error.strerror}. Make it readable or remove it.")

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        for entry in (Path(folder, name) for name in [*subfolders, *files]):
            name = entry.relative_to(root).as_posix()
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                complain(f"{entry} is a link out of the data set, to {entry.resolve()}; copy the file there.")
            elif entry.is_symlink() and not entry.exists():
                complain(f"{entry} is a dead link, to {entry.resolve()}; restore that file or remove the link.")
            elif entry.is_file() and not _hidden(name):
                yield name


def _zip_names(path: Path, complain: Complain) -> Iterator[str]:
    remedy = "It is no readable zip file; was it copied completely?"
    with untrusted(str(path), remedy=remedy), open_untrusted(path, 1 << 62, in_memory=False) as (file, size):
        Budget(size).spend(bytes=ENTRY_BYTES // 46 * _directory_bytes(file))
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(MAX_FILE_BYTES, MAX_RATIO * size):
        raise UserError(f"{path} of {size} bytes unpacks to {unpacked}; up to {MAX_RATIO} times its size is read.")
    counts = Counter(entry.filename for entry in entries)
    for entry in entries:
        name = entry.filename
        parts = PurePosixPath(name.replace("\\", "/"))
        if ".." in parts.parts or parts.is_absolute():
            complain(f"{path} has an entry named {name!r}, outside the archive; make the zip again.")
        elif _hidden(name) or not counts[name]:
            continue
        elif counts[name] > 1:
            complain(f"{path} has {counts[name]} entries named {name!r}; make the zip again.")
            counts[name] = 0  # reports the name only once
        elif entry.flag_bits & 1:
            complain(f"{path}:{name} is encrypted; give a zip file without a password.")
        else:
            yield name


def _directory_bytes(file: IO[bytes]) -> int:
    """Returns the size of a zip's directory, whose entries take 46 bytes and their names, before it is read."""
    end = vars(zipfile)["_EndRecData"](file)  # as zipfile finds it, zip64 and comments included
    return int(end[5]) if end else 0


def open_image(data: bytes, where: str) -> Image.Image:
    """Decodes an image file completely, in the file's own mode, turned as its EXIF orientation says.

    Every reader of images opens them here; `where` names the file in errors. Of an animation, it is the first picture.

    Raises UserError if the data is not an image, is truncated or damaged, or has more than MAX_PIXELS.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            Budget(len(data)).spend(bytes=4 * image.width * image.height)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
        size = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = str(error)
    except OverBudget:
        size = f"{image.width}x{image.height} in {len(data)} bytes"
    except UnidentifiedImageError:
        formats = ", ".join(IMAGE_FORMATS)
        raise UserError(f"{where} ({len(data)} bytes) is not an image of {formats}. Replace or remove it.") from None
    except Exception as error:  # PIL's decoders raise nearly any type on damaged data
        raise UserError(f"{where} ({len(data)} bytes) cannot be decoded: {error}. Replace or remove it.") from error
    raise UserError(f"{where} is too large an image ({size}); the limit is {MAX_PIXELS} pixels.")


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decodes a gray or RGB image file of 8 bits per channel to uint8 [C,H,W]; `where` names it in errors."""
    image = open_image(data, where)
    if image.mode not in ("L", "RGB"):
        raise UserError(
            f"{where} is a {image.mode} image; gray (L) and RGB images of 8 bits per channel are accepted. "
            "Convert the data set with tools/dataset_tool.py."
        )
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
