"""Sinks receive a run's reports: console, files of lines, pictures. A sink ignores what it cannot show."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stylegan_di.dnnlib.safe_files import open_plain
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


class Console(Sink):
    """Prints lines; the run's log records them."""

    def text(self, line: str) -> None:
        print(line, flush=True)


class JSONLines(Sink):
    """Appends statistics to stats.jsonl and rows to <table>.jsonl, as NVlabs' tools do."""

    def scalars(self, values: Mapping[str, Mapping[str, float]]) -> None:
        self._append("stats", values)

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        self._append(name, row)

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        with open_plain(self.folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values) | {"timestamp": time.time()}) + "\n")


class Pictures(Sink):
    def images(self, name: str, images: Tensor, columns: int) -> None:
        save_grid(images, self.folder / f"{name}.png", columns=columns)


#: The sinks of every run, by name.
SINKS: dict[str, type[Sink]] = {"console": Console, "jsonl": JSONLines, "pictures": Pictures}
