"""How a run can end before its end, each with the exit status that train.py gives it (docs/reliability.md)."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from stylegan_di.dnnlib.util import UserError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class Interrupted(Exception):
    """SIGTERM or SIGINT: the step was finished and the state saved."""

    status = 75  # EX_TEMPFAIL: try again


class Diverged(UserError):
    """The training came apart; the message says how it was noticed."""

    status = 3


class StorageError(UserError):
    """The disk is full or cannot be written."""

    status = 4


@contextlib.contextmanager
def storage_errors(path: Path, need: int | None = None) -> Iterator[None]:
    """Turns errors of a disk that is full or broken into StorageError.

    Args:
        path: what is written, a file or, where it is not known which, its folder.
        need: bytes to be written, for the message.
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
            f"{folder}; what was saved before is intact: make room, then go on with --resume={folder}"
        ) from error


class StopRequest:
    """Notes SIGTERM and SIGINT while open, for the loop to stop at the next step; the second SIGINT acts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
