"""Progress of a long job in plain text: how much is done, how fast, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from typing import TextIO

TERMINAL_SECONDS = 0.2  # at least, between two rewritings of the line on a terminal
PLAIN_SECONDS = 10.0  # at least, between two lines anywhere else, such as in a log


class Progress:
    """One line that rewrites itself on a terminal, or a plain line every 10 seconds elsewhere.

    Use as a context manager, or call `close`. A job shorter than 10 seconds prints nothing outside a terminal.

    Args:
        label: what is being done, such as 'Sampling'.
        total: of the units that `update` counts.
        stream: where lines go; None: stderr.
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self.interval = TERMINAL_SECONDS if self.stream.isatty() else PLAIN_SECONDS
        self.start = self.shown = time.monotonic()
        self.width = 0  # of the line that stands on the terminal

    def update(self, done: int, note: str = "") -> None:
        """Reports `done` units of the total, counted from the beginning; `note` is added to the line."""
        now = time.monotonic()
        if now - self.shown < self.interval and not (done == self.total and self.width):
            return
        self.shown = now
        line = progress_line(self.label, done, self.total, now - self.start, note)
        if self.stream.isatty():
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leaves the line on the terminal and goes to the next one."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress_line(label: str, done: int, total: int, seconds: float, note: str = "") -> str:
    """'Sampling: 128/1000 (13 %), 42.7/s, 20s left'; done so far took `seconds`."""
    share = f"{label}: {done}/{total} ({100 * done / max(total, 1):.0f} %)"
    parts = [share]
    if done > 0 and seconds > 0:
        rate = done / seconds
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
        parts.append(f"{format_seconds((total - done) / rate)} left" if done < total else format_seconds(seconds))
    return ", ".join(parts + [note] * bool(note))


def format_seconds(seconds: float) -> str:
    """'42s', '7m 05s', '3h 20m', '2d 04h'."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s % 3600 // 60:02d}m"
    return f"{s // 86400}d {s % 86400 // 3600:02d}h"
