"""Opens files by path or URL: downloads them once into a cache, resumes broken transfers, checks hashes, uses mirrors.

The cache is the folder DNNLIB_CACHE_DIR, else ~/.cache/dnnlib; files lie in its 'downloads' under NVlabs' names. A
broken transfer leaves '.<name>.partial' beside them, which the next one continues (HTTP Range) if the server says that
the file has not changed. DNNLIB_MIRRORS lists mirrors, separated by spaces, which are tried first: they serve
https://HOST/PATH at MIRROR/HOST/PATH. A mirror may be http://, https:// or file://.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import requests

from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError, atomic_write, cache_folder, sha256_of_file

try:
    import fcntl
except ImportError:  # Windows, where two processes that download one file at once are not kept apart
    fcntl = None  # type: ignore[assignment]

MIRRORS = "DNNLIB_MIRRORS"
ATTEMPTS = 5  # a transfer is given up after this many attempts in a row without a new byte
PAUSE_SECONDS = 1.0  # before the second attempt; doubles before each further one
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # a server that sends nothing for this long has stalled

_CHUNK = 1 << 16  # a broken transfer loses less than one chunk


def is_url(text: str) -> bool:
    """Whether a text is a URL that `open_url` accepts: http, https or file."""
    return text.startswith(("http://", "https://", "file://"))


def cached_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the file that keeps a URL's download, named as NVlabs' tools do: <md5 of the URL>_<its last part>."""
    name = re.sub(r"[^0-9a-zA-Z-._]", "_", unquote(Path(urlparse(url).path).name))[-128:] or "file"
    return cache_folder(cache_dir) / f"{hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()}_{name}"


def notice_once(key: str, text: str) -> None:
    """Prints a text on stderr once per cache, which remembers under `key` that it was shown."""
    shown = cache_folder().parent / "notices" / key
    if not shown.exists():
        print(text, file=sys.stderr)
        with contextlib.suppress(OSError):  # if the cache cannot be written, the text is shown again next time
            shown.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(shown, (text + "\n").encode())


def open_url(
    path_or_url: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> Path:
    """Returns the local file of a path or URL; a URL is downloaded once and then taken from the cache.

    Args:
        path_or_url: a path, file://, http:// or https://.
        sha256: the expected hash of the contents; if given, a file already in the cache is checked too.
        cache_dir: see `dnnlib.util.cache_folder`.
        verbose: whether to report progress on stderr.

    Raises:
        UserError: if there is no such file, the download fails, or the hash differs.
    """
    text = os.fspath(path_or_url)
    if not is_url(text) or text.startswith("file://"):
        path = _local(text) if is_url(text) else Path(text)
        if not path.is_file():
            raise UserError(f"{text}: there is no such file.")
        _check_hash(path, text, sha256, "It is damaged or a different file; replace it by the one with that SHA-256.")
        return path
    path = cached_path(text, cache_dir)
    if not path.is_file():
        mirrors = _mirrors(text)
        for copy in (_local(mirror) for mirror in mirrors if mirror.startswith("file://")):
            if copy.is_file():
                _check_hash(copy, f"{text}, at the mirror {copy}", sha256, f"Repair the mirror ({MIRRORS}).")
                return copy
        _download(text, [m for m in mirrors if not m.startswith("file://")], path, sha256, verbose)
    _check_hash(path, text, sha256, f"Delete {path} and try again.")
    return path


def _local(file_url: str) -> Path:
    return Path(url2pathname(urlparse(file_url).path))


def _mirrors(url: str) -> list[str]:
    parts = os.environ.get(MIRRORS, "").split()
    for part in parts:
        if not is_url(part):
            raise UserError(f"{MIRRORS}: {part} is not an http://, https:// or file:// URL; separate several by spaces")
    return [part.rstrip("/") + "/" + url.split("://", 1)[1] for part in parts]


def _check_hash(path: Path, source: str, sha256: str | None, remedy: str) -> None:
    if sha256 is not None and (found := sha256_of_file(path)) != sha256.lower():
        raise UserError(f"{source}: its SHA-256 is {found}, not {sha256}. {remedy}")


def _download(url: str, mirrors: list[str], path: Path, sha256: str | None, verbose: bool) -> None:
    """Downloads a file to `path`, from the first source that has it complete."""
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial_file(path) as partial:
            if path.is_file():  # another process downloaded it while this one waited
                return
            for source in [*mirrors, url]:
                try:
                    _fetch(source, partial, sha256, verbose)
                except (requests.RequestException, _BrokenTransferError) as error:
                    failures.append(f"{source}: {_brief(error)}" if mirrors else _brief(error))
                else:
                    partial.finish(path, source, sha256)
                    return
            kept = partial.size()
    except OSError as error:
        failures, kept = [*failures, _brief(error)], 0
    resume = f"{kept / 1e6:.1f} MB have arrived and are kept; another try continues from there. " if kept else ""
    raise UserError(
        f"{url}: the download failed ({'; '.join(failures)}). {resume}"
        f"Without a connection, put the file at {path}, or pass the path of a local copy."
    )


def _brief(error: Exception) -> str:
    reason = getattr(error.args[0], "reason", None) if error.args else None  # requests hides it in its own message
    return f"{type(error).__name__.lstrip('_')}: {reason or error}"[:200]


class _BrokenTransferError(Exception):
    """A transfer ended early or did not match its announcement."""


@dataclass(frozen=True)
class _Origin:
    """Where a partial file comes from: the URL, and the server's identifier of the file's version."""

    source: str
    validator: str | None


class _Partial:
    """A partial download and its origin: '.<name>.partial' and '.<name>.partial.json'."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self.notes = path.with_name(path.name + ".json")

    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def origin(self) -> _Origin | None:
        try:
            return _Origin(**json.loads(self.notes.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, origin: _Origin, size: int) -> None:
        """Keeps the first `size` bytes, which are from `origin`; writing continues after them."""
        self.file.seek(size)
        self.file.truncate()
        atomic_write(self.notes, json.dumps(asdict(origin)).encode())

    def discard(self) -> None:
        self.file.truncate(0)
        self.notes.unlink(missing_ok=True)

    def finish(self, path: Path, source: str, sha256: str | None) -> None:
        """Renames the complete file to its final name; if the hash is wrong, raises UserError and keeps nothing."""
        self.file.flush()
        found = None if sha256 is None else sha256_of_file(self.path)
        if sha256 is not None and found != sha256.lower():
            self.discard()
            raise UserError(
                f"{source}: the SHA-256 of the download is {found}, not {sha256}. "
                "Nothing was kept; the file has changed at its source or was altered in transit."
            )
        os.fsync(self.file.fileno())
        if fcntl is None:
            self.file.close()  # Windows cannot rename open files
        os.replace(self.path, path)
        self.notes.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial_file(path: Path) -> Iterator[_Partial]:
    """Opens the partial file of `path`, locked for this process; it is removed at the end if it is empty."""
    name = path.with_name(f".{path.name}.partial")
    while True:
        file = open(name, "a+b")  # noqa: SIM115
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
                break
        file.close()  # the previous holder of the lock renamed or removed it
    with file:
        partial = _Partial(name, file)
        try:
            yield partial
        finally:
            if name.exists() and partial.size() == 0:
                partial.discard()
                name.unlink()


def _fetch(source: str, partial: _Partial, sha256: str | None, verbose: bool) -> None:
    """Downloads a file into `partial`, and resumes broken transfers as long as attempts bring new bytes."""
    failures, most = 0, 0
    while True:
        try:
            return _attempt(source, partial, resumable=sha256 is not None, verbose=verbose)
        except (requests.RequestException, _BrokenTransferError) as error:
            if isinstance(error, requests.HTTPError) and error.response.status_code < 500:
                raise  # asking again will not help
            failures = 1 if partial.size() > most else failures + 1
            most = max(most, partial.size())
            if failures >= (ATTEMPTS if most else 2):  # if no byte ever arrived, there is likely no connection
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _attempt(source: str, partial: _Partial, *, resumable: bool, verbose: bool) -> None:
    """Makes one request, for the whole file or for its missing part.

    resumable: whether to join parts even if the server does not identify versions, because a hash will be checked.
    """
    begun, have = partial.origin(), partial.size()
    headers = {"Accept-Encoding": "identity"}
    if begun is not None and begun.source == source and have and (begun.validator or resumable):
        headers["Range"] = f"bytes={have}-"
        if begun.validator:
            headers["If-Range"] = begun.validator
    with requests.get(source, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is missing
        if response.status_code == 416:
            partial.discard()
            raise _BrokenTransferError(f"the server has no bytes from {have}")
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _BrokenTransferError("a web page instead of the file")
        start, total = _extent(response)
        validator, before = _validator(response), begun.validator if begun is not None and start else None
        if start not in (0, have) or (start and validator not in (None, before)):
            partial.discard()
            raise _BrokenTransferError(f"the answer is not the same version's bytes from {have}")
        partial.begin(_Origin(source, validator or before), start)
        _receive(response, partial.file, source, None if total is None else total - start, verbose)
    if total is not None and partial.size() != total:
        size = partial.size()
        if size > total:
            partial.discard()
        raise _BrokenTransferError(f"{size} of {total} bytes received")


def _receive(response: requests.Response, file: IO[bytes], source: str, length: int | None, verbose: bool) -> None:
    """Appends a response's bytes to the file; `length` is their number, None if unknown."""
    progress = Progress(f"Downloading {source}, MB", None if length is None else -(-length // 10**6))
    received = 0
    try:
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            received += len(chunk)
            if verbose:
                progress.update(-(-received // 10**6))
    finally:
        progress.close()


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Returns where a response begins in the file, and the file's length, None if the server does not say."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise _BrokenTransferError("a part of the file without its position")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None


def _validator(response: requests.Response) -> str | None:
    """Returns the server's identifier of the file's version, for If-Range."""
    if "Content-Encoding" in response.headers:
        return None
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")
