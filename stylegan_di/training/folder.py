"""The run folder, as people who come from NVlabs' tools expect it: names, numbering, and what is written when."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dnnlib.progress import format_time
from dnnlib.util import UserError, atomic_write
from stylegan_di.config import TrainConfig
from stylegan_di.training.report import append_json_line


class RunFolder:
    """`<outdir>/00000-<name>/`, made anew; two runs that start at once get different numbers."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

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
        folder.write_json("training_options.json", asdict(config))
        return folder

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
