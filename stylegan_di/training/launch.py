"""Carries out a configured run: processes, checks, folder, journal, trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stylegan_di import preflight, zoo
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.logger import Logger
from stylegan_di.dnnlib.terminal import one_line
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal import SINKS, TRACKERS
from stylegan_di.journal.journal import Journal
from stylegan_di.journal.sinks import Sink
from stylegan_di.runs.endings import Interrupted, StopRequest, memory_errors, storage_errors
from stylegan_di.runs.folder import RunFolder, check_outdir
from stylegan_di.runs.processes import follow_parent
from stylegan_di.runs.resume import Resumed
from stylegan_di.runs.statefile import versions
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.snapshots.pipelines import is_pipeline, read_pipeline
from stylegan_di.teachers.mixed import parse_teachers
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.ops import build as kernels
from stylegan_di.training import graphs, precision
from stylegan_di.training.evaluation import Evaluation, make_evaluator, make_glance, reference_of
from stylegan_di.training.methods import Method, build
from stylegan_di.training.trainer import Trainer


@memory_errors()
def launch(config: TrainConfig, resumed: Resumed | None = None) -> dict[str, Any]:
    """Trains as configured; returns the contents of result.json. `config` is that of the run to continue if any.

    Raises:
        UserError: if options or files do not work together; nothing has been written then.
        Diverged, StorageError, ProcessLost: if the run ended early.
        Interrupted: if SIGTERM or SIGINT stopped the run; the state is saved.
    """
    follow_parent()
    device = distributed.local_device(config.device)
    distributed.init(device)
    try:
        _check_agreement(config, resumed)
        if resumed is None:
            check_outdir(config.outdir)  # before samples are drawn for `examine`
        preflight.check(config, processes=distributed.world_size(), fetch=True)
        method = build(config, device)
        ops = load_kernels(device.type)
        settled = precision.settle(method)
        config = method.config
        stop, reference = StopRequest(), reference_of(method)
        if resumed is None:
            settled += method.examine(make_glance(method, reference, stop))
        found = [*settled, *graphs.header(method)]
        evaluator = make_evaluator(method, reference, stop, config.metrics, config.metric_samples)
        with (
            _open_folder(config, resumed) as folder, stop, _noted(folder), storage_errors(folder.path), _log(folder),
            Journal(_sinks(config, folder), device) as journal,
        ):  # fmt: skip
            journal.say(describe(method, ops, found, resumed))
            saved = None if resumed is None else resumed.state
            evaluation = Evaluation(method, folder, journal, evaluator)
            return Trainer(method, folder, evaluation, journal, stop, saved).run()
    finally:
        distributed.finish()


def _check_agreement(config: TrainConfig, resumed: Resumed | None) -> None:
    """Raises UserError in every process if they were started with different options or versions."""
    if config.gpus not in (None, distributed.world_size()):
        raise UserError(f"--gpus={config.gpus}, but {distributed.world_size()} processes were started: leave it out")
    state = "none" if resumed is None else resumed.state.path.name
    mine = {"state": state} | {k: str(v) for k, v in (asdict(config) | versions()).items() if k != "outdir"}
    first, *_ = all_options = distributed.gather_objects(mine)
    for rank, other in enumerate(all_options):
        if differing := [key for key in first if first[key] != other.get(key)]:
            named = "; ".join(f"{key} {first[key]} against {other.get(key)}" for key in differing)
            raise UserError(
                f"processes 0 and {rank} of the run disagree: {named}. Start all of them with the same options, files "
                "and versions"
            )


def _open_folder(config: TrainConfig, resumed: Resumed | None) -> RunFolder:
    """Returns the run's folder, which the first process creates or reopens; all processes raise its errors."""
    if distributed.rank() != 0:
        answer = json.loads(distributed.broadcast_string(""))
        if "error" in answer:
            raise UserError(answer["error"])
        return RunFolder(Path(answer["path"]), config)
    try:
        with storage_errors(resumed.folder) if resumed is not None else nullcontext():
            folder = RunFolder.create(config) if resumed is None else RunFolder.reopen(resumed.folder, config)
    except UserError as error:
        distributed.broadcast_string(json.dumps({"error": str(error)}))
        raise
    distributed.broadcast_string(json.dumps({"path": str(folder.path)}))
    return folder


def _sinks(config: TrainConfig, folder: RunFolder) -> list[Sink]:
    """Makes the sinks of every run and those of --track, in the first process."""
    every = [*SINKS.values(), *(TRACKERS[name] for name in config.track)]
    return [sink(folder.path) for sink in every] if distributed.rank() == 0 else []


def _log(folder: RunFolder) -> AbstractContextManager[Any]:
    return Logger(folder.path / "log.txt") if distributed.rank() == 0 else nullcontext()


@contextmanager
def _noted(folder: RunFolder) -> Iterator[None]:
    """Writes to the log why a run ended early."""
    try:
        yield
    except (UserError, Interrupted) as ending:
        if distributed.rank() == 0:
            with suppress(OSError):  # if the disk is full, the error itself says so
                folder.note(str(ending))
        raise


def load_kernels(device: str) -> str:
    """Loads the kernels, built at first use, and returns what the ops run on."""
    may_build = device in kernels.COMPILERS
    if may_build and not kernels.is_built(device) and distributed.rank() == 0:
        print("building native kernels, once for this machine (10 to 60 s)", flush=True)
    return kernels.load(device, may_build=may_build)


def describe(method: Method, ops: str, found: Sequence[tuple[str, str]] = (), resumed: Resumed | None = None) -> str:
    """Returns the header of a run: its networks, what was found of them, data, device, length, and what it resumes."""
    config = method.config
    lines = [*method.header(), *found]
    if config.gan_pkl:
        lines.append(("GAN", config.gan_pkl))
    if method.dataset is not None:
        left = method.dataset.left_out()
        lines.append(("data", f"{config.data}, {len(method.dataset)} images" + (f"; left out: {left}" if left else "")))
    if method.labels_note:
        lines.append(("labels", method.labels_note))
    teachers = [] if config.teacher is None or config.trains_teacher else parse_teachers(config.teacher)
    for name in (config.gan_pkl, config.resume, config.transfer, *(term.source for term in teachers)):
        if name is not None and is_pipeline(name):
            pipeline = read_pipeline(name, config.teacher_options)
            lines.append(("opened", f"{name}: {pipeline.sentence()}"))
        elif name is not None:
            source = zoo.TRANSFER_SOURCES.get(name, name)
            lines.append(("opened", f"{source}: {inspect_file(source, try_networks=False).sentence()}"))
    over = f" over {count} processes" if (count := distributed.world_size()) > 1 else ""
    lines.append(("batch", f"{config.batch}{over} on {method.device}"))
    lines.append(("ops", ops))
    lines.append(("length", f"{config.kimg:g} kimg, seed {config.seed}"))
    lines += [("resumed", note) for note in (resumed.notes if resumed else ())]
    return "\n".join(f"{title:<15} {one_line(text)}" for title, text in lines)
