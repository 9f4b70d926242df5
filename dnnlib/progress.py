"""Reports the progress of long loops: a line that rewrites itself on a terminal, or occasional lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

TERMINAL_SECONDS = 0.1  # between rewrites
_LOG_SECONDS = 10.0  # between lines
_RATED_SECONDS = 0.1  # what took less has no rate that means anything


class LiveLine:
    """A line of a terminal that is rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.width = 0  # length of the text now on the terminal

    def show(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self.width))
        self.width = len(text)
        self.stream.flush()

    def wipe(self) -> None:
        """Empties the line, so that other text can take its place."""
        if self.width:
            self.show("")
            self.stream.write("\r")

    def end(self) -> None:
        """Leaves the line as it is; the next text begins below it."""
        if self.width:
            self.stream.write("\n")
            self.width = 0


class Progress:
    """Reports '<label>: done/total, rate, time left, note'.

    Args:
        label: what is being done.
        total: the number of steps, None if it is not known.
        stream: where to report, None for stderr.
    """

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self.rewrites = self.stream.isatty()
        self.started = self.reported = time.monotonic()
        self.pending = ""
        self.line = LiveLine(self.stream)

    def update(self, done: int, note: str = "") -> None:
        """Reports that `done` of the steps are complete, unless the last report is too recent."""
        now = time.monotonic()
        self.pending = self._line(done, now - self.started, note)
        if now - self.reported >= (TERMINAL_SECONDS if self.rewrites else _LOG_SECONDS):
            self.reported = now
            self._write()

    def close(self) -> None:
        """Reports the last update if it has not been reported, and ends the line."""
        if self.pending:
            self._write()
        self.line.end()
        self.stream.flush()

    def _line(self, done: int, seconds: float, note: str) -> str:
        parts = [f"{self.label}: {done}" if self.total is None else f"{self.label}: {done}/{self.total}"]
        if done > 0 and seconds >= _RATED_SECONDS:
            parts.append(_rate(done / seconds))
            if self.total is not None and done < self.total:
                parts.append(f"{format_time(seconds * (self.total - done) / done)} left")
            else:
                parts.append(f"{format_time(seconds)} in all")
        return ", ".join([*parts, note] if note else parts)

    def _write(self) -> None:
        if self.rewrites:
            self.line.show(self.pending)
        else:
            self.stream.write(self.pending + "\n")
            self.stream.flush()
        self.pending = ""


class PassProgress:
    """Reports consecutive passes; it is called with a pass's label, the steps done and their total."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        if self.progress is None or self.progress.label != label:
            self.progress = Progress(label, total)
        self.progress.update(done)
        if done == total:
            self.progress.close()
            self.progress = None


def _rate(per_second: float) -> str:
    if per_second >= 100:
        return f"{per_second:.0f}/s"
    return f"{per_second:.3g}/s" if per_second >= 1 else f"{1 / per_second:.3g} s each"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns '1 image' or '2 images'; `many` is the plural if it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def format_time(seconds: float) -> str:
    """Formats seconds as '42s', '3m 05s', '2h 07m' or '4d 03h'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole // 60 % 60:02}m"
    return f"{whole // 86400}d {whole // 3600 % 24:02}h"
