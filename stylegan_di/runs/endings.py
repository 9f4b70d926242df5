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

from stylegan_di.dnnlib.util import UserError

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
    """Turns errors of a full or broken disk into StorageError.

    Args:
        path: the file that is written, or its folder if the file is not known.
        need: number of bytes to write, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free
        needed = "" if need is None else f"it needs {need / 1e6:.1f} MB, "
        raise StorageError(
            f"{error.filename or path}: cannot write ({error.strerror}): {needed}{free / 1e6:.1f} MB are free in "
            f"{folder}; what was saved before is intact: make room, then continue with --resume={folder}"
        ) from error


class StopRequest:
    """Records SIGTERM and SIGINT while open, so that the loop stops after the step; a second SIGINT acts at once."""

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
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
