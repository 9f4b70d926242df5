"""The run folder, as people who come from NVlabs' tools expect it: names, numbering, and what is written when."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.progress import format_time
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.runs import statefile
from stylegan_di.training.report import append_json_line


class RunFolder:
    """`<outdir>/00000-<name>/`; two runs that start at once get different numbers."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(cls, config: TrainConfig, name: str) -> RunFolder:
        """The next free number in config.outdir.

        Raises:
            UserError: the folder cannot be written.
        """
        outdir = Path(config.outdir)
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            numbers = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})-", p.name))]
            path = _claim(outdir, max(numbers, default=-1) + 1, name)
        except OSError as error:
            raise UserError(f"--outdir={config.outdir}: cannot write there ({error}); choose another folder") from error
        folder = cls(path, config)
        folder._take()
        return folder

    @classmethod
    def reopen(cls, path: Path, config: TrainConfig) -> RunFolder:
        """The folder of a run that goes on.

        Raises:
            UserError: another process trains in it.
        """
        folder = cls(path, config)
        folder._take()
        statefile.remove_temporary_files(path)
        return folder

    def _take(self) -> None:
        """Holds the folder until the `with` block ends or the process dies, and writes the options into it."""
        if os.name == "posix":
            import fcntl

            self._lock = open(self.path / ".lock", "wb")  # noqa: SIM115 (close() does)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise UserError(f"{self.path}: another process trains in this folder; wait, or end it first") from None
        self.write_json("training_options.json", asdict(self.config))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def line_files(self) -> dict[str, int]:
        """The sizes of the files that grow by lines (stats.jsonl, metric-*.jsonl), by name."""
        return {path.name: path.stat().st_size for path in self.path.glob("*.jsonl")}

    def cut_line_files(self, sizes: Mapping[str, int]) -> None:
        """Takes away the lines written after `line_files` gave these sizes, which will be written again."""
        for path in self.path.glob("*.jsonl"):
            os.truncate(path, min(path.stat().st_size, sizes.get(path.name, 0)))

    def note(self, text: str) -> None:
        """A line in the log alone."""
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def state_path(self, nimg: int) -> Path:
        return statefile.state_path(self.path, nimg)

    def best_state_path(self) -> Path:
        return self.path / "best-state.safetensors"

    def snapshot_path(self, kimg: float) -> Path:
        return self.path / f"network-snapshot-{round(kimg):06d}.{self.config.snap_format}"

    def best_path(self) -> Path:
        return self.path / f"network-best.{self.config.snap_format}"

    def grid_path(self, kimg: float | None) -> Path:
        """fakes_init.png before training (kimg None), then fakes000200.png."""
        return self.path / ("fakes_init.png" if kimg is None else f"fakes{round(kimg):06d}.png")

    def write_json(self, name: str, values: Mapping[str, object]) -> None:
        atomic_write(self.path / name, (json.dumps(values, indent=2) + "\n").encode())

    def add_statistics(self, values: Mapping[str, object]) -> None:
        append_json_line(self.path / "stats.jsonl", dict(values) | {"timestamp": time.time()})

    def add_metric(self, name: str, results: Mapping[str, float], snapshot: str, seconds: float) -> None:
        """One line of metric-<name>.jsonl, with the fields of stylegan2-ada's."""
        line = {"results": dict(results), "metric": name, "total_time": seconds,
                "total_time_str": format_time(seconds), "num_gpus": 1, "snapshot_pkl": snapshot,
                "timestamp": time.time()}  # fmt: skip
        append_json_line(self.path / f"metric-{name}.jsonl", line)


def _claim(outdir: Path, number: int, name: str) -> Path:
    """Makes the folder of the first free number; making a folder is atomic, so no two runs get one."""
    while True:
        path = outdir / f"{number:05d}-{name}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
