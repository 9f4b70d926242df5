"""The ways in which a run can end early, with the exit status of train.py for each (docs/reliability.md)."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from stylegan_di.dnnlib.untrusted import brief
from stylegan_di.dnnlib.util import UserError

#: Signals that stop a run with its state saved; Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
#: Ends a process at once; on Windows every signal does.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class Interrupted(Exception):
    """SIGTERM or SIGINT stopped the run after the step was finished and the state saved."""

    status = 75  # EX_TEMPFAIL: try again


class Diverged(UserError):
    """The training diverged; the message says how this was detected."""

    status = 3


class StorageError(UserError):
    """The disk is full or cannot be written to."""

    status = 4


@contextlib.contextmanager
def storage_errors(path: Path, need: int | None = None) -> Iterator[None]:
    """Turns errors of a full, read-only or broken disk, and any error of files in the folder, into StorageError.

    Args:
        path: the file that is written, or its folder if the file is not known.
        need: number of bytes to write, for the message.
    """
    try:
        yield
    except OSError as error:
        folder = path if path.is_dir() or not path.suffix else path.parent
        if error.errno not in STORAGE_ERRORS and not str(error.filename).startswith(str(folder)):
            raise
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(there).free
        needed = "" if need is None else f"it needs {need / 1e6:.1f} MB, "
        raise StorageError(
            f"{error.filename or path}: cannot write ({error.strerror}): {needed}{free / 1e6:.1f} MB are free in "
            f"{folder}; what was saved before is intact: make room, then continue with --resume={folder}"
        ) from error


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns errors of memory that does not suffice, of the machine or of a GPU, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            remedy = "give --batch-gpu, a smaller --batch, or smaller networks"
            raise UserError(f"memory does not suffice ({brief(error)}): {remedy}") from error
        raise


class StopRequest:
    """Records STOPPING signals while open, so that the loop stops after the step; a second SIGINT acts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        if self.requested:
            raise Interrupted(f"stopped by {self.signal}")

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
