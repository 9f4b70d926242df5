"""Saves and restores the training state from which a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.runs import statefile
from stylegan_di.runs.folder import RunFolder
from stylegan_di.runs.resume import check_inputs, config_hash
from stylegan_di.torch_utils import distributed


class Kept(Protocol):
    """A part of a run that is saved: tensors by name, and plain values for JSON."""

    def tensors(self) -> dict[str, Tensor]: ...

    def values(self) -> dict[str, Any]: ...

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None: ...


class Keeper:
    """Keeps a run's training states.

    Args:
        folder: the run's folder.
        config: its options.
        inputs: descriptions of the input files, to check that a run resumes with the same ones.
        parts: the parts to save, by name; their tensors' names must not collide.
    """

    def __init__(
        self, folder: RunFolder, config: TrainConfig, inputs: Mapping[str, str], parts: Mapping[str, Kept]
    ) -> None:
        self.folder = folder
        self.config = config
        self.inputs = inputs
        self.parts = parts
        self.saved: Path | None = None  # the newest state on disk

    def save(self, nimg: int, seconds: float) -> None:
        """Writes the training state and removes all but the last few; every process must call this.

        Args:
            nimg: images seen.
            seconds: seconds that the run has taken so far.
        """
        path = self.folder.state_path(nimg)
        if path == self.saved:
            return
        tensors = {name: tensor for part in self.parts.values() for name, tensor in part.tensors().items()}
        self.saved = path
        if distributed.rank() != 0:
            return
        values: dict[str, Any] = {name: part.values() for name, part in self.parts.items()}
        values |= {"inputs": self.inputs, "line_files": self.folder.line_files(), "seconds": seconds}
        statefile.save_state(path, tensors, values, asdict(self.config), config_hash(self.config))
        statefile.prune(self.folder.path, path)

    def restore(self, saved: statefile.State) -> float:
        """Restores a training state; returns the seconds that the run had taken.

        Raises:
            UserError: if the teacher or the data set has changed since the run began.
        """
        with untrusted(str(saved.path), remedy="Pass a training state that train.py wrote."):
            check_inputs(saved.values["inputs"], self.inputs)
            seconds = float(saved.values["seconds"])
            if not 0 <= seconds < 1e12:
                raise ValueError(f"seconds of {seconds}")
            for name, part in self.parts.items():
                part.restore(saved.values[name], saved.tensors)
            if distributed.rank() == 0:
                self.folder.cut_line_files(saved.values["line_files"])
        self.saved = saved.path
        return seconds

    def keep_best(self) -> None:
        """Keeps the newest state as that of the best snapshot, for --on-divergence=best."""
        if self.config.on_divergence == "best":
            assert self.saved is not None
            statefile.keep_best(self.saved, self.folder.best_state_path())

    def best(self) -> statefile.State | None:
        """Returns the state of the best snapshot, or None if none is kept."""
        path = self.folder.best_state_path()
        return statefile.load_state(path) if self.config.on_divergence == "best" and path.is_file() else None
