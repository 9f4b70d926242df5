"""Opens files by path or URL: downloads them once into a cache, resumes broken transfers, checks hashes, uses mirrors.

The cache is the folder DNNLIB_CACHE_DIR, else ~/.cache/dnnlib; files lie in its 'downloads' under NVlabs' names. A
broken transfer leaves '.<name>.partial' beside them, which the next one continues (HTTP Range) if the server says that
the file has not changed. DNNLIB_MIRRORS lists mirrors, separated by spaces, which are tried first: they serve
https://HOST/PATH at MIRROR/HOST/PATH. A mirror may be http://, https:// or file://. DNNLIB_REFRESH=1 fetches anew what
the cache has, once in each process.

Servers and whoever else may write into the cache are not trusted: only what looks like the file that its name promises
is kept, within limits on size, rate and time; a cached file that does not, or whose hash is wrong, is fetched anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import requests
import urllib3

from stylegan_di.dnnlib.file_kinds import wrong_kind
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.safe_files import lock, open_plain
from stylegan_di.dnnlib.util import UserError, atomic_write, cache_folder, say, sha256_of, sha256_of_file

MIRRORS = "DNNLIB_MIRRORS"
REFRESH = "DNNLIB_REFRESH"
ATTEMPTS = 5  # a transfer is given up after this many attempts in a row without a new byte
PAUSE_SECONDS = 1.0  # before the second attempt; doubles before each further one
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # a server that sends nothing for this long has stalled
MAX_BYTES = 1 << 35  # of one file; the largest published networks have 6 GB
MIN_RATE = 1000.0  # bytes per second, on average over RATE_SECONDS; a server that is slower has stalled too
RATE_SECONDS = 60.0
MAX_SECONDS = 24 * 3600.0  # of one request

_CHUNK = 1 << 16
_MAX_NOTES = 1 << 12  # bytes of the notes beside a partial file
_refreshed: set[Path] = set()  # what this process has fetched anew


def is_url(text: str) -> bool:
    """Whether a text is a URL that `open_url` accepts: http, https or file."""
    return text.startswith(("http://", "https://", "file://"))


def cached_path(url: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the file that keeps a URL's download, named as NVlabs' tools do: <md5 of the URL>_<its last part>."""
    try:
        name = re.sub(r"[^0-9a-zA-Z-._]", "_", unquote(Path(urlparse(url).path).name))[-128:] or "file"
    except ValueError as error:
        raise UserError(f"{url[:200]}: this is no URL ({error}); write it as https://HOST/PATH") from None
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
) -> Path:
    """Returns the local file of a path or URL; a URL is downloaded once and then taken from the cache.

    Args:
        path_or_url: a path, file://, http:// or https://.
        sha256: the expected hash of the contents; if given, a file already in the cache is checked too.
        cache_dir: see `dnnlib.util.cache_folder`.

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
    mirrors = _mirrors(text)
    if os.environ.get(REFRESH) and path not in _refreshed:
        _discard(path, f"{REFRESH} asks for it")
        _refreshed.add(path)
    elif path.is_file() and (wrong := mistake(path, sha256)):
        _discard(path, wrong)
    if not path.is_file():
        for copy in (_local(mirror) for mirror in mirrors if mirror.startswith("file://")):
            if copy.is_file():
                _check_hash(copy, f"{text}, at the mirror {copy}", sha256, f"Repair the mirror ({MIRRORS}).")
                return copy
        _download(text, [m for m in mirrors if not m.startswith("file://")], path, sha256)
    return path


def mistake(path: Path, sha256: str | None = None) -> str:
    """Says why a file is not the one that its name and the hash promise; '' if it may be."""
    with open(path, "rb") as file:
        wrong = wrong_kind(file.read(512), os.fstat(file.fileno()).st_size, path.suffix)
    if not wrong and sha256 is not None and (found := sha256_of_file(path)) != sha256.lower():
        wrong = f"its SHA-256 is {found}, not {sha256}"
    return wrong


def _discard(path: Path, why: str) -> None:
    """Removes a file from the cache, so that it is fetched anew."""
    if not os.path.lexists(path):
        return
    say(f"{path} is fetched anew: {why}")
    try:
        path.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: {why}, and it cannot be removed ({error.strerror}); remove it and try again"
        ) from error


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


def _download(url: str, mirrors: list[str], path: Path, sha256: str | None) -> None:
    """Downloads a file to `path`, from the first source that has it complete."""
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial_file(path) as partial:
            if path.is_file():  # another process downloaded it while this one waited
                return
            for source in [*mirrors, url]:
                try:
                    _fetch(source, partial, sha256)
                    partial.finish(path, sha256)
                    return
                except Exception as error:  # whatever a server can make the libraries raise
                    failures.append(f"{source}: {_brief(error)}" if mirrors else _brief(error))
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
    return f"{type(error).__name__.lstrip('_')}: {reason or error}"[:300]


class BrokenTransferError(Exception):
    """A transfer ended early or did not match its announcement."""


class TooLargeError(BrokenTransferError):
    """More arrived than there should."""


@dataclass(frozen=True)
class _Origin:
    """Where a partial file comes from: the URL, the server's identifier of the file's version, and the file's size."""

    source: str
    validator: str | None
    total: int | None


class _Partial:
    """A partial download and its origin: '.<name>.partial' and '.<name>.partial.json'."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.file = file
        self.notes = path.with_name(path.name + ".json")

    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def origin(self) -> _Origin | None:
        """Returns where the bytes come from; None if no notes say so that can be understood."""
        try:
            with open_plain(self.notes, "r+b") as file:
                origin = _Origin(**json.loads(file.read(_MAX_NOTES)))
        except Exception:  # somebody else may have written them
            return None
        texts = isinstance(origin.source, str) and isinstance(origin.validator, str | None)
        return origin if texts and isinstance(origin.total, int | None) else None

    def begin(self, origin: _Origin, size: int) -> None:
        """Keeps the first `size` bytes, which are from `origin`; writing continues after them."""
        self.file.seek(size)
        self.file.truncate()
        atomic_write(self.notes, json.dumps(asdict(origin)).encode())

    def discard(self) -> None:
        self.file.truncate(0)
        self.notes.unlink(missing_ok=True)

    def finish(self, path: Path, sha256: str | None) -> None:
        """Renames the complete file to its final name; if it is not what was asked for, raises and keeps nothing."""
        self.file.flush()
        if wrong := wrong_kind(self.head(), self.size(), path.suffix):
            self.discard()
            raise BrokenTransferError(wrong)
        found = None if sha256 is None else self.sha256()
        if sha256 is not None and found != sha256.lower():
            self.discard()
            raise BrokenTransferError(
                f"the SHA-256 of the download is {found}, not {sha256}. Nothing was kept; the file has changed at its "
                "source or was altered in transit"
            )
        os.fsync(self.file.fileno())
        self.release()
        os.replace(self.path, path)
        self.notes.unlink(missing_ok=True)

    def release(self) -> None:
        """Before the file is renamed or removed, which Windows refuses while it is open."""
        if os.name == "nt":
            self.file.close()

    def head(self) -> bytes:
        self.file.seek(0)
        return self.file.read(512)

    def sha256(self) -> str:
        self.file.seek(0)  # by the file that holds the lock: Windows lets no other one read
        return sha256_of(self.file)


@contextlib.contextmanager
def _partial_file(path: Path) -> Iterator[_Partial]:
    """Opens the partial file of `path`, locked for this process; it is removed at the end if it is empty."""
    name = path.with_name(f".{path.name}.partial")
    while True:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(name)  # one look: the holder of the lock may rename the file at any moment
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                say(f"{name} is a link or no ordinary file, and is removed")
                name.unlink()
        file = open_plain(name, "a+b")
        lock(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(name)):
                break
        file.close()  # the previous holder of the lock renamed or removed it
    with file:
        partial = _Partial(name, file)
        try:
            yield partial
        finally:
            if name.exists() and partial.size() == 0:
                partial.discard()
                partial.release()
                name.unlink()


def _fetch(source: str, partial: _Partial, sha256: str | None) -> None:
    """Downloads a file into `partial`, and resumes broken transfers as long as attempts bring new bytes."""
    failures, most = 0, 0
    while True:
        try:
            return _attempt(source, partial, resumable=sha256 is not None)
        except (requests.RequestException, urllib3.exceptions.HTTPError, BrokenTransferError) as error:
            if isinstance(error, requests.HTTPError) and error.response.status_code < 500:
                raise  # asking again will not help
            failures = 1 if partial.size() > most else failures + 1
            most = max(most, partial.size())
            if failures >= (ATTEMPTS if most else 2):  # if no byte ever arrived, there is likely no connection
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _attempt(source: str, partial: _Partial, *, resumable: bool) -> None:
    """Makes one request, for the whole file or for its missing part.

    resumable: whether to join parts even if the server does not identify versions, because a hash will be checked.
    """
    begun, have = partial.origin(), partial.size()
    headers = {"Accept-Encoding": "identity"}
    if begun is not None and begun.source == source and have and (begun.validator or resumable):
        headers["Range"] = f"bytes={have}-"
        if begun.validator:
            headers["If-Range"] = begun.validator
    else:
        begun = None
    with requests.get(source, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        if begun is not None and response.status_code == 416:
            if begun.total in (None, have) and response.headers.get("Content-Range") == f"bytes */{have}":
                return  # nothing is missing
            partial.discard()
            raise BrokenTransferError(f"the server has no bytes from {have}")
        response.raise_for_status()
        if response.status_code not in (200, 206):
            raise BrokenTransferError(f"status {response.status_code} instead of the file")
        packed = response.headers.get("Content-Encoding", "identity")[:40]
        if packed.lower() != "identity":  # a little of it may be much
            raise BrokenTransferError(f"an answer packed by {packed}, which was not asked for")
        if "html" in response.headers.get("Content-Type", "").lower():
            raise BrokenTransferError("a web page instead of the file")
        start, total = _extent(response)
        validator, before = _validator(response), begun.validator if begun is not None and start else None
        if start not in (0, have) or (start and validator not in (None, before)):
            partial.discard()
            raise BrokenTransferError(f"the answer is not the same version's bytes from {have}")
        if start and begun is not None and begun.total not in (None, total):
            partial.discard()
            raise BrokenTransferError(f"the answer is of a file of {total} bytes, the one before was of {begun.total}")
        partial.begin(_Origin(source, validator or before, total), start)
        _receive(response, partial, source, total)
    if total is not None and partial.size() != total:
        size = partial.size()
        if size > total:
            partial.discard()
        raise BrokenTransferError(f"{size} of {total} bytes received")


def _receive(response: requests.Response, partial: _Partial, source: str, total: int | None) -> None:
    """Appends a response's bytes to the partial file, within the limits; `total` is the file's size, if known."""
    start = partial.size()
    if (total or 0) > MAX_BYTES:
        raise BrokenTransferError(f"a file of {total} bytes; up to {MAX_BYTES} are fetched")
    progress = Progress(f"Downloading {source}, MB", None if total is None else -(-(total - start) // 10**6))
    watch = Watch(min(total or MAX_BYTES, MAX_BYTES), start)
    try:
        while data := response.raw.read1(_CHUNK, decode_content=True):
            partial.file.write(data)
            watch.count(len(data))
            progress.update(-(-(watch.size - start) // 10**6))
    except TooLargeError:
        partial.discard()
        raise
    finally:
        progress.close()


class Watch:
    """Watches a transfer for the limits on size, rate and time.

    Args:
        most: bytes that may come.
        size: bytes that have come before.
    """

    def __init__(self, most: int, size: int = 0) -> None:
        self.most = most
        self.size = size
        self._begin = time.monotonic()
        self._window = (self._begin, size)

    def count(self, received: int) -> None:
        """Learns that bytes have arrived.

        Raises:
            BrokenTransferError: if they are beyond a limit; TooLargeError if that is the size.
        """
        self.size += received
        now, (since, before) = time.monotonic(), self._window
        if self.size > self.most:
            raise TooLargeError(f"more than the {self.most} bytes that were to come")
        if now - self._begin > MAX_SECONDS:
            raise BrokenTransferError(f"it takes longer than {MAX_SECONDS:.0f} s")
        if now - since > RATE_SECONDS:
            if self.size - before < MIN_RATE * (now - since):
                raise BrokenTransferError(f"fewer than {MIN_RATE:.0f} bytes per second arrive")
            self._window = (now, self.size)


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Returns where a response begins in the file, and the file's size, None if the server does not say."""
    if response.status_code == 206:
        match = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if match is None:
            raise BrokenTransferError("a part of the file without its position")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    plain = re.fullmatch(r"[0-9]{1,18}", length) and "Content-Encoding" not in response.headers
    return 0, int(length) if plain else None


def _validator(response: requests.Response) -> str | None:
    """Returns the server's identifier of the file's version, for If-Range."""
    if "Content-Encoding" in response.headers:
        return None
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")
