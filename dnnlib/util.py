"""Small helpers that know nothing of the rest of the project: the user's-mistake error, downloads, files, the log."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO, cast
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import requests

_CHUNK = 1 << 20
_CONNECT_SECONDS = 10
_READ_SECONDS = 60


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


def _sync_directory(path: Path) -> None:
    """Puts a rename on disk, where the system can open directories."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Downloads.


def is_url(text: str) -> bool:
    """Whether a text is an address that `open_url` fetches: http, https or file."""
    return text.startswith(("http://", "https://", "file://"))


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: `cache_dir`, else DNNLIB_CACHE_DIR, else ~/.cache/dnnlib; in it, 'downloads'."""
    root = cache_dir or os.environ.get("DNNLIB_CACHE_DIR") or Path.home() / ".cache" / "dnnlib"
    return Path(root) / "downloads"


def cached_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file in which a URL's download is kept: <md5 of the URL>_<its last part>, as NVlabs' tools name it."""
    name = re.sub(r"[^0-9a-zA-Z-._]", "_", unquote(Path(urlparse(url).path).name))[-128:] or "file"
    return cache_folder(cache_dir) / f"{hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()}_{name}"


def open_url(
    path_or_url: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> Path:
    """The local file of a path or URL; a URL is downloaded once and then taken from the cache.

    Args:
        path_or_url: a path, file://, http:// or https://.
        sha256: of the contents, checked where given (also of a file already in the cache).
        cache_dir: see `cache_folder`.
        verbose: whether progress goes to stderr.

    Raises:
        UserError: if there is no such file, the download fails, or the hash differs.
    """
    text = os.fspath(path_or_url)
    if not is_url(text) or text.startswith("file://"):
        path = Path(url2pathname(urlparse(text).path)) if is_url(text) else Path(text)
        if not path.is_file():
            raise UserError(f"{text}: there is no such file.")
        _check_hash(path, text, sha256, "Use the file this project names, or pass another one by path.")
        return path
    path = cached_path(text, cache_dir)
    if not path.is_file():
        _download(text, path, sha256, verbose)
    _check_hash(path, text, sha256, f"Delete {path} and try again.")
    return path


def _check_hash(path: Path, source: str, sha256: str | None, remedy: str) -> None:
    if sha256 is not None and (found := sha256_of_file(path)) != sha256.lower():
        raise UserError(f"{source}: its SHA-256 is {found}, not {sha256}. {remedy}")


def _download(url: str, path: Path, sha256: str | None, verbose: bool) -> None:
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)) as response,
            atomic_file(path) as file,
        ):
            response.raise_for_status()
            total = int(response.headers.get("Content-Length") or 0)
            for chunk in _with_progress(response.iter_content(_CHUNK), url, total if verbose else None):
                digest.update(chunk)
                file.write(chunk)
            if total and "Content-Encoding" not in response.headers and file.tell() != total:
                raise requests.ConnectionError(f"{file.tell()} of {total} bytes received")
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise UserError(
                    f"{url}: the SHA-256 of what was downloaded is {digest.hexdigest()}, not {sha256}. "
                    "Nothing was kept; the file there has changed or something on the way altered it."
                )
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"{url}: the download failed ({_brief(error)}). "
            f"Without a connection, put the file at {path}, or pass the path of a local copy."
        ) from None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _with_progress(chunks: Iterator[bytes], url: str, total: int | None) -> Iterator[bytes]:
    """The chunks, reporting the megabytes received to stderr about once a second; total None: silently."""
    received, reported = 0, time.monotonic()
    for chunk in chunks:
        received += len(chunk)
        if total is not None and time.monotonic() - reported > 1:
            reported = time.monotonic()
            of_total = f" of {total / 1e6:.1f}" if total else ""
            print(f"Downloading {url}: {received / 1e6:.1f}{of_total} MB", file=sys.stderr)
        yield chunk


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
