"""Sinks receive a run's reports: console, files of lines, pictures. A sink ignores what it cannot show.

Those with modules of their own are the page of a run (`report`) and, on request, `tensorboard` and `trackers`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stylegan_di.dnnlib.progress import TERMINAL_SECONDS, LiveLine
from stylegan_di.dnnlib.safe_files import open_plain
from stylegan_di.dnnlib.util import naming
from stylegan_di.images import save_grid


class Sink:
    """Takes reports and ignores them; a subclass overrides the methods for the reports it shows.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Takes the statistics of a tick: {name: {num, mean, std}}."""

    def images(self, name: str, images: Tensor, columns: int) -> None:
        """Takes a grid of images uint8 [n,C,H,W], `columns` per row."""

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        """Takes a row of a table."""

    def text(self, line: str) -> None:
        """Takes a line for the user."""

    def live(self, line: str) -> None:
        """Takes a line that holds until the next one."""

    def snapshot(self) -> None:
        """Learns that all of a snapshot, or of the start, has been reported."""

    def close(self, ending: str) -> None:
        """Learns that the run is 'complete', or why it ended early; nothing follows."""


class Console(Sink):
    """Prints lines, which the run's log records; on a terminal, one below them tells the progress."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._live = LiveLine(sys.stdout) if sys.stdout.isatty() else None
        self._shown = 0.0  # when the live line was last written

    def text(self, line: str) -> None:
        if self._live is not None:
            self._live.wipe()
        print(line, flush=True)

    def live(self, line: str) -> None:
        now = time.monotonic()
        if self._live is not None and now - self._shown >= TERMINAL_SECONDS:
            self._shown = now
            self._live.show(line[: shutil.get_terminal_size().columns - 1])

    def close(self, ending: str) -> None:
        if self._live is not None:
            self._live.wipe()


class JSONLines(Sink):
    """Appends statistics to stats.jsonl and rows to <table>.jsonl, as NVlabs' tools do."""

    def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
        self._append("stats", values)

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        self._append(name, row)

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.folder / f"{name}.jsonl"
        with naming(path), open_plain(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values) | {"timestamp": time.time()}) + "\n")


class Pictures(Sink):
    def images(self, name: str, images: Tensor, columns: int) -> None:
        save_grid(images, self.folder / f"{name}.png", columns=columns)
