"""The run folder, with names and numbering as in NVlabs' tools."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.safe_files import open_plain, try_lock
from stylegan_di.dnnlib.terminal import one_line
from stylegan_di.dnnlib.util import UserError, atomic_write, naming, sync_directory
from stylegan_di.runs import statefile


def check_outdir(outdir: str) -> None:
    """Raises UserError for an --outdir that cannot be written, as far as that shows without writing."""
    existing = next((path for path in (Path(outdir), *Path(outdir).parents) if os.path.exists(path)), Path())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"--outdir={outdir}: cannot write into {existing}; choose another folder")


class RunFolder:
    """The folder `<outdir>/00000-<name>/`; runs that start at the same time get different numbers."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self._lock: IO[bytes] | None = None

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Makes the folder with the next free number in config.outdir.

        Raises:
            UserError: if the folder cannot be written.
        """
        outdir = Path(config.outdir)
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            numbers = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})-", p.name))]
            for number in itertools.count(max(numbers, default=-1) + 1):
                path = outdir / f"{number:05d}-{run_name(config)}"
                with contextlib.suppress(FileExistsError):  # mkdir is atomic, so two runs never get the same one
                    path.mkdir()
                    break
            sync_directory(outdir)
        except OSError as error:
            raise UserError(f"--outdir={config.outdir}: cannot write there ({error}); choose another folder") from error
        folder = cls(path, config)
        folder._take()
        return folder

    @classmethod
    def reopen(cls, path: Path, config: TrainConfig) -> RunFolder:
        """Opens the folder of a resumed run.

        Raises:
            UserError: if another process is training in it.
        """
        folder = cls(path, config)
        folder._take()
        statefile.remove_temporary_files(path)
        return folder

    def _take(self) -> None:
        """Locks the folder until the `with` block ends or the process dies, and writes the options into it."""
        self._lock = open_plain(self.path / ".lock", "ab")
        if not try_lock(self._lock):
            self._lock.close()
            raise UserError(f"{self.path}: another process is training in this folder; wait, or stop it")
        self.write_json("training_options.json", asdict(self.config))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # nothing was written into it, and the lock ends with the process
                self._lock.close()

    def line_files(self) -> dict[str, int]:
        """Flushes the files that grow by lines (stats.jsonl, metric-*.jsonl) to disk; returns their sizes by name."""
        sizes = {}
        for path in self.path.glob("*.jsonl"):
            with naming(path), open_plain(path, "ab") as file:
                os.fsync(file.fileno())
                sizes[path.name] = file.tell()
        return sizes

    def cut_line_files(self, sizes: Mapping[str, int]) -> None:
        """Removes the lines written after `line_files` returned these sizes; the run will write them again."""
        for path in self.path.glob("*.jsonl"):
            with naming(path), open_plain(path, "r+b") as file:
                file.truncate(min(path.stat().st_size, max(sizes.get(path.name, 0), 0)))

    def note(self, text: str) -> None:
        """Writes a line to the log only."""
        with open_plain(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(one_line(text) + "\n")

    def state_path(self, nimg: int) -> Path:
        return statefile.state_path(self.path, nimg)

    def best_state_path(self) -> Path:
        return self.path / "best-state.safetensors"

    def snapshot_path(self, kimg: float) -> Path:
        return self.path / f"network-snapshot-{round(kimg):06d}.{self.config.snap_format}"

    def beside_path(self, name: str) -> Path:
        return self.path / f"{name}.{self.config.snap_format}"

    def best_path(self) -> Path:
        return self.path / f"network-best.{self.config.snap_format}"

    def write_json(self, name: str, values: Mapping[str, object]) -> None:
        atomic_write(self.path / name, (json.dumps(values, indent=2) + "\n").encode())


def run_name(config: TrainConfig) -> str:
    """Returns the folder name after the number, such as 'fashion-gan-di-ikl-batch64'."""
    source = config.gan_pkl or config.data or config.teacher or "run"
    stem = source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    parts = [stem, config.kind]
    if config.kind == "di":
        parts.append(config.divergence.replace("=", ""))
        if config.adv_weight:
            parts.append(f"adv{config.adv_weight:g}")
    if config.cond:
        parts.append("cond")
    if config.mirror:
        parts.append("mirror")
    if config.subset is not None:
        parts.append(f"subset{config.subset}")
    if config.kind == "edm":
        parts += [config.arch, config.precond]
    elif config.kind == "gan" and config.cfg is not None:
        parts.append(config.cfg)
    parts.append(f"batch{config.batch}")
    if config.desc:
        parts.append(config.desc)
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts))
