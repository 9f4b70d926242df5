"""Small helpers that know nothing of the rest of the project: the user's-mistake error, files, the log."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO, cast

_CHUNK = 1 << 20


class UserError(Exception):
    """A mistake that its user can mend. The message names the option or file, the value, what is accepted, the remedy.

    Scripts print it as one line and exit with `status`; it never reaches a user as a traceback.
    """

    status = 2


# Files.


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the name `path` only once it is complete and on disk.

    It is written under a temporary name beside `path`, flushed to disk, and renamed; after an error it is removed and
    what was at `path` stays. An OSError that names no file is made to name `path`.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)
        raise
    _sync_directory(target.parent)


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that `path` holds either all of `data` or what it held before, even if the machine stops."""
    with atomic_file(path) as file:
        file.write(data)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: `cache_dir`, else DNNLIB_CACHE_DIR, else ~/.cache/dnnlib; in it, 'downloads'."""
    root = cache_dir or os.environ.get("DNNLIB_CACHE_DIR") or Path.home() / ".cache" / "dnnlib"
    return Path(root) / "downloads"


def _sync_directory(path: Path) -> None:
    """Puts a rename on disk, where the system can open directories."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# The log.


class Logger:
    """While open, whatever is printed to stdout or stderr also goes to a file.

    Use as a context manager; the streams are put back on leaving it, whatever happens inside.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = True) -> None:
        self.path = Path(path)
        self.mode = "a" if append else "w"

    def __enter__(self) -> Logger:
        # Line by line, so that the log is complete up to the last line even after a kill.
        self.file = open(self.path, self.mode, encoding="utf-8", buffering=1)
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast("TextIO", _Tee(stream, self.file)) for stream in self.streams)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout, sys.stderr = self.streams
        self.file.close()


class _Tee:
    """A text stream whose text also goes to a file; all else is the stream's."""

    def __init__(self, stream: TextIO, file: IO[str]) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._file.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
