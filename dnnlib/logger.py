"""The log of a run: a file that takes what is printed, whatever becomes of the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO, cast

from stylegan_di.dnnlib.safe_files import open_plain
from stylegan_di.dnnlib.terminal import plain
from stylegan_di.dnnlib.util import naming


class Logger:
    """A context manager that also writes everything printed to stdout or stderr to a file, which must be no link.

    The streams are restored on leaving it, even after an error. If a stream is closed meanwhile, as by `| head`, what
    is printed goes to the file alone. Of a line that rewrites itself (by carriage returns) the file gets what it said
    last. Both get `terminal.plain` text.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __enter__(self) -> Logger:
        # Line buffering keeps the log complete up to its last line even if the process is killed.
        self.file = open_plain(self.path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self.streams = sys.stdout, sys.stderr
        self.tees = [_Tee(stream, self.file) for stream in self.streams]
        sys.stdout, sys.stderr = (cast("TextIO", tee) for tee in self.tees)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout, sys.stderr = self.streams
        for tee in self.tees:
            tee.end_line()
        with naming(self.path):
            self.file.close()


class _Tee:
    """A text stream that also writes its text to a file; everything else is delegated to the stream."""

    def __init__(self, stream: TextIO, file: IO[str]) -> None:
        self._stream = stream
        self._file = file
        self._is_open = True
        self._line = ""  # what has been written of a line that is not complete

    def write(self, written: str) -> int:
        text = plain(written)
        *complete, self._line = (self._line + text).split("\n")
        self._log("".join(_as_it_stands(line) + "\n" for line in complete))
        self._line = self._line[max(self._line.rfind("\r"), 0) :]
        if self._is_open:
            with self._watched():
                self._stream.write(text)
        return len(written)

    def end_line(self) -> None:
        """Writes what there is of the last line to the file."""
        if line := _as_it_stands(self._line):
            self._log(line + "\n")
        self._line = ""

    def _log(self, text: str) -> None:
        with naming(self._file.name):
            self._file.write(text)

    def flush(self) -> None:
        with naming(self._file.name):
            self._file.flush()
        if self._is_open:
            with self._watched():
                self._stream.flush()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes if the stream turns out to be closed; from then on nothing is written to it."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._is_open = False
            self._log(f"the output is closed ({error}): this log alone goes on\n")
            close_quietly(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_it_stands(line: str) -> str:
    """Returns what a terminal shows of a line that is rewritten by carriage returns, each time over its whole width."""
    written = line.rstrip("\r")
    return written.rpartition("\r")[2].rstrip() if "\r" in written else written


def close_quietly(stream: TextIO) -> None:
    """Leads a stream whose reader is gone to nowhere, so that what is left in it does not fail at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
