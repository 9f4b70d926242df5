"""`--resume=latest|FOLDER|STATE`: which training state a run goes on from, and with which options."""

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

#: Options that a run may change when it resumes. They change the length of the training (and with it --lr-decay's
#: rates), where and how it is computed, and what is kept of it; all else of its numbers stays.
MAY_CHANGE = ("outdir", "device", "gpus", "workers", "batch_gpu", "kimg", "snap", "state", "snap_format", "metrics",
              "detector_file", "max_skips", "on_divergence", "fsdp")  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A run to go on with: its options, its state, and what its user should know."""

    config: TrainConfig
    state: State
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.state.path.parent


def goes_on(source: str | None) -> bool:
    """Whether --resume=source means to go on with a run, and not to train on from a GAN's file."""
    if source is None:
        return False
    path = Path(source)
    return source == "latest" or path.is_dir() or path.name.startswith("training-state-")


def resume(source: str, given: Mapping[str, Any]) -> Resumed:
    """The run to go on with.

    Args:
        source: latest (the newest state in the run folders of --outdir), a run folder, or a training state.
        given: options of the command line by name, None where not given.

    Raises:
        UserError: if there is no usable state, or an option differs that must stay.
    """
    path, notes = _choose(source, Path(given.get("outdir") or TrainConfig.outdir))
    state = statefile.load_state(path)
    config = changed_config(state, {key: value for key, value in given.items() if key not in ("resume", "outdir")})
    notes += [f"goes on from {path}"]
    if changes := statefile.version_changes(path):
        notes.append(f"other versions than when it was written, so that numbers may differ: {'; '.join(changes)}")
    if config.device == "cpu" and (change := statefile.threads_change(path)):
        notes.append(f"another number of threads, which sums round by: {change} (OMP_NUM_THREADS)")
    return Resumed(config, state, tuple(notes))


def _choose(source: str, outdir: Path) -> tuple[Path, list[str]]:
    path = Path(source)
    if source != "latest" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"--resume={source}: there is no such file; pass a run folder, or latest")
        if wrong := statefile.damage(path):
            raise UserError(f"--resume={source}: the file is damaged, {wrong}; pass its folder to use the one before")
        return path, []
    folder = path if source != "latest" else _latest_folder(outdir)
    notes: list[str] = []
    for state in reversed(statefile.complete_states(folder)):
        wrong = statefile.damage(state)
        if wrong is None:
            return state, notes
        notes.append(f"{state}: damaged ({wrong}); the state before it is used")
    raise UserError(
        f"--resume={source}: {folder} holds no intact training state"
        + (f" ({'; '.join(notes)})" if notes else "")
        + "; the run has to begin anew: leave --resume out"
    )


def _latest_folder(outdir: Path) -> Path:
    """The run folder of outdir in which the newest state is."""
    states = [path for folder in outdir.glob("*/") for path in statefile.complete_states(folder)]
    if not states:
        raise UserError(f"--resume=latest: no run in --outdir={outdir} holds a training state; give a run's folder")
    return max(states, key=statefile.written).parent


def changed_config(state: State, given: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a state, with those of the given options that may change.

    Raises:
        UserError: naming every option that must stay as it was and is given otherwise.
    """
    known = {field.name for field in fields(TrainConfig)}
    stored = {name: tuple(value) if isinstance(value, list) else value for name, value in state.config.items()}
    if unknown := stored.keys() - known:
        raise UserError(f"{state.path}: written by another version, with options {', '.join(sorted(unknown))}")
    given = {name: value for name, value in given.items() if value is not None and value != stored.get(name)}
    if differing := [name for name in given if name not in MAY_CHANGE]:
        named = "; ".join(f"{option_name(name)}={given[name]} was {stored.get(name)}" for name in differing)
        may = ", ".join(option_name(name) for name in MAY_CHANGE)
        raise UserError(f"--resume: the run cannot go on with other options: {named}. Leave out; may change: {may}")
    config = TrainConfig(**{**stored, **given, "outdir": str(state.path.parent.parent)})
    return config


def config_hash(config: TrainConfig) -> str:
    """SHA-256 of the options that must not change while a run goes on."""
    fixed = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError where a run would go on with another data set or teacher than it began with."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise UserError(
                f"--resume: --{name} is not what the run began with: then {before.get(name)}, now {now.get(name)}; "
                "put the old file back, or begin a new run"
            )
