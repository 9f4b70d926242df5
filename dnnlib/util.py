"""Small helpers that do not depend on the rest of the project: the error for users' mistakes, and files."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

DEVICE = r"cpu|mps|cuda(?::([0-9]{1,3}))?"  # what --device accepts

_CHUNK = 1 << 20


class UserError(Exception):
    """A mistake that the user can fix. The message names the option or file, the value, what is accepted, the remedy.

    Scripts print its lines, one but for `Problems`, and exit with `status`; a user never sees its traceback.
    """

    status = 2

    def lines(self) -> list[str]:
        """Returns what is printed; whatever a file or an option says begins no line of its own."""
        return [_joined(str(self))]


class Problems(UserError):
    """Several mistakes, each an argument, which are printed one a line."""

    def __str__(self) -> str:
        return f"{len(self.args)} problems: {'; '.join(self.args)}"

    def lines(self) -> list[str]:
        return [f"{len(self.args)} problems:", *(f"  {_joined(problem)}" for problem in self.args)]


def _joined(text: str) -> str:
    return " ".join(text.splitlines())


def not_installed(what: str, package: str, extra: str) -> UserError:
    """Returns the error for `what`, which needs an optional package; `extra` is its extra of pyproject.toml."""
    return UserError(
        f'{what} needs the package {package}, which is not installed: pip install ".[{extra}]" in the clone, '
        f"or pip install {package}"
    )


def option_name(name: str) -> str:
    """'batch_gpu' -> '--batch-gpu': what an option is called on the command line, as messages name it."""
    return "--" + (name if name.startswith("S_") else name.replace("_", "-"))  # EDM's S_churn, ... keep their line


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean sid?' where one of the known words is close, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def say(text: str) -> None:
    """Writes a line to stderr, for what the user should know but need not act upon."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# Files.


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes an OSError that names no file, as those of open files are, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a binary file for writing that takes the name `path` only once it is complete and on disk.

    It is written under a temporary name beside `path`, flushed to disk, and renamed. After an error it is removed, and
    whatever was at `path` stays. An OSError that names no file is changed to name `path`.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(target):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that has vanished, or cannot be written any more
            temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that `path` holds either all of `data` or its previous contents, even if the machine stops."""
    with atomic_file(path) as file:
        file.write(data)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's contents, in lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """Returns the SHA-256 of the rest of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder 'downloads' of the cache: `cache_dir`, else DNNLIB_CACHE_DIR, else ~/.cache/dnnlib."""
    root = cache_dir or os.environ.get("DNNLIB_CACHE_DIR") or Path.home() / ".cache" / "dnnlib"
    return Path(root) / "downloads"


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turns errors of writing into a folder of the cache into a UserError that says how to choose another."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); set DNNLIB_CACHE_DIR to a folder that can.") from error


def sync_directory(path: Path) -> None:
    """Flushes new names in a folder to disk, on systems that can open directories."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
