"""`--resume=latest|FOLDER|STATE`: finds the training state to resume from, and the options to resume with."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.dnnlib.download import is_url
from stylegan_di.dnnlib.util import DEVICE, UserError, option_name
from stylegan_di.hub import HUB
from stylegan_di.options import Option, options_of, typed
from stylegan_di.presets import KIND_DEFAULTS, check_cfg
from stylegan_di.runs import statefile
from stylegan_di.runs.statefile import State
from stylegan_di.teachers.mixed import parse_teachers

#: Options that may change when a run resumes. They affect the length of the training (and with it --lr-decay's
#: rates), where its data lie and how it is computed, and what is measured and saved; all its other numbers stay the
#: same. That --data names the same images, `check_inputs` makes sure.
MAY_CHANGE = ("outdir", "data", "device", "gpus", "workers", "batch_gpu", "kimg", "snap", "state", "snap_format",
              "metrics", "metric_samples", "detector_file", "max_skips", "on_divergence", "fsdp",
              "heartbeat", "track")  # fmt: skip
MOST_NOTES = 3  # on damaged states
_ALTERED = "the state was altered, or is of another version; pass one that stylegan-di train wrote"


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
        source: latest (the newest state in the run folders of --outdir), a folder of run folders likewise, a run
            folder, or a training state.
        given: the command line's options by name, None where not given.

    Raises:
        UserError: if there is no usable state, or an option that must not change differs.
    """
    path, notes = _choose(source, Path(given.get("outdir") or TrainConfig.outdir))
    state = statefile.load_state(path)
    config = changed_config(state, {key: value for key, value in given.items() if key not in ("resume", "outdir")})
    config = _found_from_here(config, state)
    notes += [f"continues from {path}"]
    if config.metrics and config.metric_samples != state.config.get("metric_samples"):
        before = state.config.get("metric_samples")
        notes.append(f"metrics are on {config.metric_samples} samples from here on, and were on {before}")
    if (count := state.config.get("gpus") or 1) != 1 and config.gpus is None:
        notes.append(f"it ran in {count} processes; how many continue it, --gpus says, and sums round accordingly")
    libraries, threads = statefile.changes(path)
    if libraries:
        notes.append(f"versions have changed since it was written, so numbers may differ: {'; '.join(libraries)}")
    if config.device == "cpu" and threads:
        notes.append(f"the number of threads has changed, so sums may round differently: {threads} (OMP_NUM_THREADS)")
    return Resumed(config, state, tuple(notes))


def _found_from_here(config: TrainConfig, state: State) -> TrainConfig:
    """The configuration with its relative paths as they are found: from here, else from where the run was started.

    Raises:
        UserError: an input file of the run is found from neither.
    """
    started = Path(str(state.values.get("started_in", "")))
    found: dict[str, str] = {}
    inputs = [(name, getattr(config, name)) for name in ("data", "gan_pkl", "autoencoder", "ref", "detector_file")]
    if config.teacher and not config.trains_teacher:
        inputs += [("teacher", term.source) for term in parse_teachers(config.teacher)]
    inputs += [("classes", config.classes)] if config.classes not in (None, "null", "drawn") else []
    for name, value in inputs:
        is_file = value and samples_wanted(value) is None and zoo.entry(value) is None and not is_url(value)
        is_file = is_file and "=" not in value and not value.startswith(HUB)
        if is_file and not Path(value).is_absolute() and not Path(value).exists():
            if getattr(config, name) == value and (started / value).exists():
                found[name] = str(started / value)
                continue
            moved = "; if it was moved, give --data=NEW" if name == "data" else ""
            raise UserError(
                f"--resume: {option_name(name)}={value} of {state.path} is not found from {Path.cwd()}: the path is "
                f"relative to the folder that the run was started in; go there{moved}"
            )
    return TrainConfig(**(vars(config) | found))


def _choose(source: str, outdir: Path) -> tuple[Path, list[str]]:
    path = Path(source)
    if path.suffix == ".pt":
        raise UserError(
            f"--resume={source}: edm's training states hold pickled code, which is not read; start from the network "
            "beside it: --transfer=network-snapshot-NNN.pkl"
        )
    if source != "latest" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"--resume={source}: there is no such file; pass a run folder, or latest")
        if wrong := statefile.damage(path):
            raise UserError(f"--resume={source}: the file is damaged, {wrong}; pass its folder to use the one before")
        return path, []
    folders = [path]
    if source == "latest" or not _states(path):
        folders = _latest_folders(outdir if source == "latest" else path, source)
    notes: list[str] = []
    for state in (state for folder in folders for state in reversed(_states(folder))):
        wrong = statefile.damage(state)
        if wrong is None:
            return state, notes[:MOST_NOTES]
        notes.append(f"{state}: damaged ({wrong}); the state before it is used")
    raise UserError(
        f"--resume={source}: {' and '.join(map(str, folders[:2]))} holds no intact training state"
        + (f" ({'; '.join(notes[:MOST_NOTES])})" if notes else "")
        + "; start a new run: leave --resume out"
    )


def _latest_folders(outdir: Path, source: str) -> list[Path]:
    """Returns outdir's run folders that have states, highest number first; outdir itself where it is a run's folder."""
    folders = {}
    for folder in outdir.iterdir() if outdir.is_dir() else ():
        number = re.match(r"(\d{5,9})-", folder.name)
        if number and not folder.is_symlink() and (states := _states(folder)):
            folders[int(number[1]), states[-1].name] = folder
    if not folders and (outdir / "training_options.json").is_file():
        return [outdir]
    if not folders and source != "latest":
        raise UserError(f"--resume={source}: the folder holds no training state, nor a run's folder that does")
    if not folders:
        raise UserError(
            f"--resume=latest: no run in --outdir={outdir} holds a training state, as seen from {Path.cwd()}; "
            "give a run's folder"
        )
    return [folders[key] for key in sorted(folders, reverse=True)]


def _states(folder: Path) -> list[Path]:
    """Returns a folder's states, none if it cannot be read."""
    try:
        return statefile.complete_states(folder)
    except OSError:
        return []


def changed_config(state: State, given: Mapping[str, Any]) -> TrainConfig:
    """Returns a state's configuration, updated with the given options.

    Raises:
        UserError: if options that must not change differ; the message names all of them.
    """
    stored = _checked_options(state)
    given = {name: value for name, value in given.items() if value is not None and value != stored.get(name)}
    if differing := [name for name in given if name not in MAY_CHANGE]:
        was = {name: typed(stored.get(name)) or "not given" for name in differing}
        named = "; ".join(f"{option_name(name)}={typed(given[name])} was {was[name]}" for name in differing)
        may = ", ".join(option_name(name) for name in MAY_CHANGE)
        raise UserError(f"--resume: these options cannot change: {named}. Leave them out; these may change: {may}")
    return TrainConfig(**{**stored, **given, "outdir": str(state.path.parent.parent)})


def _checked_options(state: State) -> dict[str, Any]:
    """Returns the options in a state, as if they had been typed; --gpus comes from nowhere else but the command line.

    Raises:
        UserError: for an unknown option, a value that is not accepted, or options that are not those of its manifest.
    """
    declared = {option.name: option for option in options_of(TrainConfig)}
    if unknown := state.config.keys() - declared.keys() - {"kind"}:
        raise UserError(f"{state.path}: written by another version, with options {', '.join(sorted(unknown))[:200]}")
    if str(state.config.get("kind")) not in KIND_DEFAULTS:
        raise UserError(f"{state.path}: --kind={str(state.config.get('kind'))[:40]}; {_ALTERED}")
    stored = {name: tuple(value) if isinstance(value, list) else value for name, value in state.config.items()}
    for name, value in stored.items():
        if name == "kind" or (value is None and declared[name].optional):
            continue
        if not _has_type(value, declared[name]):
            found = f"{option_name(name)}={str(value)[:40]}, a {type(value).__name__}"
            raise UserError(f"{state.path}: {found}; {_ALTERED}")
        declared[name].check(value)
    if not re.fullmatch(DEVICE, str(stored.get("device", "cpu"))):
        raise UserError(f"{state.path}: --device={stored['device']}; {_ALTERED}")
    if stored.get("cfg") is not None:
        check_cfg(str(stored["kind"]), str(stored["cfg"]))
    if stored_hash(state.config) != statefile.manifest(state.path)["config_sha256"]:
        raise UserError(f"{state.path}: its options are not those that its manifest was written for; {_ALTERED}")
    return stored | {"gpus": None}


def _has_type(value: Any, declared: Option) -> bool:
    types = (int, float) if declared.item is float else (declared.item,)
    if declared.many:
        return isinstance(value, tuple) and all(type(part) in types for part in value)
    return type(value) in types


def config_hash(config: TrainConfig) -> str:
    """Returns the SHA-256 of the options that must not change when a run resumes."""
    return stored_hash(asdict(config))


def stored_hash(options: Mapping[str, Any]) -> str:
    """Returns the same of the options in a state."""
    fixed = {name: value for name, value in options.items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError if a run would resume with a different data set or teacher than it began with."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise UserError(
                f"--resume: --{name} is not what the run began with: then {before.get(name)}, now {now.get(name)}; "
                "restore the old file, or start a new run"
            )
