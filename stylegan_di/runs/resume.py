"""`--resume=latest|FOLDER|STATE`: finds the training state to resume from, and the options to resume with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.runs import statefile
from stylegan_di.runs.statefile import State

#: Options that may change when a run resumes. They affect the length of the training (and with it --lr-decay's
#: rates), where and how it is computed, and what is saved; all its other numbers stay the same.
MAY_CHANGE = ("outdir", "device", "gpus", "workers", "batch_gpu", "kimg", "snap", "state", "snap_format", "metrics",
              "detector_file", "max_skips", "on_divergence", "fsdp")  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A run to resume: its options, its state, and notes for the user."""

    config: TrainConfig
    state: State
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.state.path.parent


def goes_on(source: str | None) -> bool:
    """Returns whether --resume=source continues a run, rather than starting from a GAN's file."""
    if source is None:
        return False
    path = Path(source)
    return source == "latest" or path.is_dir() or path.name.startswith("training-state-")


def resume(source: str, given: Mapping[str, Any]) -> Resumed:
    """Loads the run to resume.

    Args:
        source: latest (the newest state in the run folders of --outdir), a run folder, or a training state.
        given: the command line's options by name, None where not given.

    Raises:
        UserError: if there is no usable state, or an option that must not change differs.
    """
    path, notes = _choose(source, Path(given.get("outdir") or TrainConfig.outdir))
    state = statefile.load_state(path)
    config = changed_config(state, {key: value for key, value in given.items() if key not in ("resume", "outdir")})
    notes += [f"continues from {path}"]
    libraries, threads = statefile.changes(path)
    if libraries:
        notes.append(f"versions have changed since it was written, so numbers may differ: {'; '.join(libraries)}")
    if config.device == "cpu" and threads:
        notes.append(f"the number of threads has changed, so sums may round differently: {threads} (OMP_NUM_THREADS)")
    return Resumed(config, state, tuple(notes))


def _choose(source: str, outdir: Path) -> tuple[Path, list[str]]:
    path = Path(source)
    if source != "latest" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"--resume={source}: there is no such file; pass a run folder, or latest")
        if wrong := statefile.damage(path):
            raise UserError(f"--resume={source}: the file is damaged, {wrong}; pass its folder to use the one before")
        return path, []
    folder = path
    if source == "latest":  # the folder with the newest state
        states = [state for run in outdir.glob("*/") for state in statefile.complete_states(run)]
        if not states:
            raise UserError(f"--resume=latest: no run in --outdir={outdir} holds a training state; give a run's folder")
        folder = max(states, key=statefile.written).parent
    notes: list[str] = []
    for state in reversed(statefile.complete_states(folder)):
        wrong = statefile.damage(state)
        if wrong is None:
            return state, notes
        notes.append(f"{state}: damaged ({wrong}); the state before it is used")
    raise UserError(
        f"--resume={source}: {folder} holds no intact training state"
        + (f" ({'; '.join(notes)})" if notes else "")
        + "; start a new run: leave --resume out"
    )


def changed_config(state: State, given: Mapping[str, Any]) -> TrainConfig:
    """Returns a state's configuration, updated with the given options.

    Raises:
        UserError: if options that must not change differ; the message names all of them.
    """
    known = {field.name for field in fields(TrainConfig)}
    stored = {name: tuple(value) if isinstance(value, list) else value for name, value in state.config.items()}
    if unknown := stored.keys() - known:
        raise UserError(f"{state.path}: written by another version, with options {', '.join(sorted(unknown))}")
    given = {name: value for name, value in given.items() if value is not None and value != stored.get(name)}
    if differing := [name for name in given if name not in MAY_CHANGE]:
        named = "; ".join(f"{option_name(name)}={given[name]} was {stored.get(name)}" for name in differing)
        may = ", ".join(option_name(name) for name in MAY_CHANGE)
        raise UserError(f"--resume: these options cannot change: {named}. Leave them out; these may change: {may}")
    return TrainConfig(**{**stored, **given, "outdir": str(state.path.parent.parent)})


def config_hash(config: TrainConfig) -> str:
    """Returns the SHA-256 of the options that must not change when a run resumes."""
    fixed = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError if a run would resume with a different data set or teacher than it began with."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise UserError(
                f"--resume: --{name} is not what the run began with: then {before.get(name)}, now {now.get(name)}; "
                "restore the old file, or start a new run"
            )
