"""Opens files and folders that somebody else may have prepared: no link is followed, nothing odd is written into.

A name that can be guessed may hold a planted link to another file, a pipe that blocks, or a file of another user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from stylegan_di.dnnlib.util import UserError, naming

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # the latter, because a pipe would block


def open_plain(path: str | os.PathLike[str], mode: str, **options: Any) -> IO[Any]:
    """Opens a file like `open`, but only where `path` is an ordinary file or is free.

    Args:
        mode: must not truncate ('a', 'ab', 'a+b', 'r+b'), so that nothing is lost before the check.

    Raises:
        UserError: if a link, a pipe, a device or a folder is there.
    """
    if os.path.islink(path):
        raise _not_plain(path)  # Windows has no O_NOFOLLOW, which elsewhere refuses a link that comes after this look
    try:
        file = open(path, mode, opener=_open_no_link, **options)  # noqa: SIM115 (the caller closes it)
    except OSError:
        if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
            raise _not_plain(path) from None
        raise
    with naming(path):
        status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise _not_plain(path)
    return file


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_LINK, 0o666)


def _not_plain(path: str | os.PathLike[str]) -> UserError:
    kind = "a link" if os.path.islink(path) else "no ordinary file"
    return UserError(f"{os.fspath(path)}: this is {kind}, into which nothing is written; remove it and try again")


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lets one process in at a time, by a lock on the file `path`; the system releases it if its holder dies."""
    with open_plain(path, "ab") as file:
        lock(file)
        yield


def lock(file: IO[Any]) -> None:
    """Waits for the lock on an open file, which holds until the file is closed or the process dies."""
    filelock.lock_descriptor(file.fileno())


def try_lock(file: IO[Any]) -> bool:
    """Takes the lock on an open file as `lock` does; False if another process has it."""
    return filelock.lock_descriptor(file.fileno(), blocking=False)


def private_folder(path: Path) -> str:
    """Makes a folder that only this user can write into; what is there instead is removed.

    Returns what was wrong with what was there, '' if nothing.

    Raises:
        OSError: if it cannot be made or removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wrong = not_private(path)
    if wrong and os.path.lexists(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    path.mkdir(mode=0o700, exist_ok=True)
    if still := not_private(path):
        raise PermissionError(f"{path} {still}")
    return wrong


def not_private(path: Path, kind: int = stat.S_IFDIR) -> str:
    """Says why a folder, or with `kind` S_IFREG a file, is not to be trusted with code; '' if it is or is missing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    if stat.S_IFMT(status.st_mode) != kind:
        return "is a link" if stat.S_ISLNK(status.st_mode) else "is of another kind than expected"
    if os.name == "posix" and status.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by others" if status.st_mode & 0o022 else ""
