"""From a configuration to a finished run: processes, folder, log, trainer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dnnlib.util import Logger, UserError
from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.inspection import inspect_file
from stylegan_di.metrics.table import need_reals
from stylegan_di.presets import RECIPES
from stylegan_di.training.build import Job, build, run_name
from stylegan_di.training.evaluation import Evaluation, make_evaluator
from stylegan_di.training.folder import RunFolder
from stylegan_di.training.trainer import Trainer
from stylegan_di.training.transfer import TRANSFER_SOURCES
from torch_utils import distributed


def launch(config: TrainConfig) -> dict[str, Any]:
    """Trains as configured; returns what result.json holds.

    Raises:
        UserError: options or files that do not work together; nothing has been written then.
    """
    device = distributed.local_device(config.device)
    distributed.init(device)
    try:
        if config.batch % distributed.world_size():
            raise UserError(f"--batch={config.batch} does not divide over {distributed.world_size()} processes")
        job = build(config, device)
        evaluator = make_evaluator(job, _reference(job))
        path = Path(distributed.broadcast_string(_new_folder(config)))
        folder = RunFolder(path, config)
        with Logger(path / "log.txt") if distributed.rank() == 0 else nullcontext():
            if distributed.rank() == 0:
                print(describe(job), flush=True)
            return Trainer(job, folder, Evaluation(job, folder, evaluator)).run()
    finally:
        distributed.finish()


def _new_folder(config: TrainConfig) -> str:
    return str(RunFolder.create(config, run_name(config)).path) if distributed.rank() == 0 else ""


def _reference(job: Job) -> Any:
    """What metrics compare with: --ref, else the zoo's reference of a known name, else the training's data set."""
    config = job.config
    if not need_reals(config.metrics):
        if config.metrics and config.ref is not None:
            metrics = ",".join(config.metrics)
            raise UserError(f"--ref={config.ref}: --metrics={metrics} compares with no real images; leave it out")
        return None
    if config.ref is not None:
        return str(zoo.resolve(config.ref))
    known = zoo.entry(config.gan_pkl or "") or zoo.entry(config.teacher or "")
    if known is not None and known.reference is not None:
        return str(zoo.resolve(known.reference))
    if job.dataset is not None:
        return job.dataset
    raise UserError(
        f"--metrics={','.join(config.metrics)} needs --ref=NPZ, reference statistics, because none are known for "
        f"{config.gan_pkl or config.teacher}; or give --metrics=none"
    )


def describe(job: Job) -> str:
    """The header of a run: what trains on what, in how many parameters."""
    config, state = job.config, job.state

    def size(module: Any) -> str:
        return f"{sum(p.numel() for p in module.parameters()):,} parameters"

    lines = [f"kind            {config.kind}", f"model           {size(state.model)}"]
    if job.teacher is not None:
        lines.append(f"teacher         {config.teacher}, {size(job.teacher)}")
        lines.append(f"divergence      {config.divergence}, adversarial weight {config.adv_weight:g}")
        if config.cfg is not None:
            lines.append(f"recipe          {config.cfg}: {RECIPES[config.cfg].note(config.gan_pkl is not None)}")
    elif config.cfg is not None:
        lines.append(f"preset          {config.cfg}")
    if config.gan_pkl:
        lines.append(f"GAN             {config.gan_pkl}")
    if job.dataset is not None:
        lines.append(f"data            {config.data}, {len(job.dataset)} images")
    for name in (config.gan_pkl, config.resume, config.teacher):
        if name is not None:
            source = TRANSFER_SOURCES.get(name, name)
            lines.append(f"opened          {source}: {inspect_file(source, try_networks=False).sentence()}")
    lines.append(f"batch           {config.batch} over {distributed.world_size()} process(es) on {job.device}")
    lines.append(f"length          {config.kimg:g} kimg, seed {config.seed}")
    return "\n".join(lines)
