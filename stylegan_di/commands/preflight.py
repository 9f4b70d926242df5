"""Says before a refinement whether it can help: is the teacher better than the GAN, do they fit, what will it cost?

    stylegan-di preflight --gan-pkl=fashion-gan.pkl
    stylegan-di preflight --gan-pkl=my-gan.pkl --teacher=edm-ffhq-64x64-uncond-vp.pkl --match=resize --ref=my.npz

Takes the options of `stylegan-di train --kind=di`. It looks at the GAN's samples through the teacher, measures the
first metric of GAN and teacher (8 evaluations) on --headroom samples, 1000 by default, and times some steps. The exit
status is 2 if the refinement is hopeless, that is if the teacher is no better or does not fit, unless --force is given.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click
import torch

from stylegan_di import preflight
from stylegan_di.commands.train import default_of, new_config
from stylegan_di.config import HEADROOM, TrainConfig
from stylegan_di.dnnlib.cli import GroupedCommand, declared_options, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.headroom import compare
from stylegan_di.journal.journal import Journal
from stylegan_di.journal.resources import estimate
from stylegan_di.options import options_of
from stylegan_di.runs.endings import StopRequest
from stylegan_di.training.batch import Batch
from stylegan_di.training.evaluation import make_evaluator, reference_of
from stylegan_di.training.methods import DiffInstruct, build


def compared(config: TrainConfig, method: DiffInstruct) -> str | None:
    """The first metric of the GAN and of the teachers; None if none is asked for, or it tells not better from worse.

    Raises:
        UserError: no teacher is better than the GAN.
    """
    samples = HEADROOM if config.headroom is None else config.headroom
    evaluator = make_evaluator(method, reference_of(method), StopRequest(), config.metrics[:1], samples)
    if evaluator is None or not samples:
        return None
    found = compare(evaluator, method.model.origin, [each.teacher for each in method.instructions], config.seed)
    problem = None if found is None else found.problem()
    if problem is not None and not config.force:
        raise UserError(f"--teacher={config.teacher}: {problem}, or give --force")
    return None if found is None else found.sentence()


def cost(config: TrainConfig, method: DiffInstruct, steps: int) -> str:
    """The time and memory of the run, from a few steps after a first one."""
    journal = Journal([], method.device)
    start = time.monotonic()
    for step in range(steps + 1):
        if step == 1:
            start = time.monotonic()
        batch = Batch.of_step(
            seed=config.seed, nimg=step * config.batch, size=config.batch, batch_gpu=config.batch_gpu or config.batch,
            rank=0, world_size=1, device=method.device,
        )  # fmt: skip
        method.step(batch, journal)
        if method.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / steps / config.batch * 1000
    return f"{estimate(seconds, config.kimg, method.device)}, from {steps} steps"


@click.command(cls=GroupedCommand, help=(__doc__ or "").replace("\n    ", "\n\n    "))
@declared_options(options_of(TrainConfig), default_of)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps that are timed.")
@user_errors
def main(steps: int, **given: Any) -> None:
    config = replace(new_config("di", **given), gpus=None)
    if config.gan_pkl is None or config.teacher is None or config.trains_teacher:
        raise UserError("give --gan-pkl, the GAN to refine, and a teacher that there is already")
    preflight.check(config, processes=1, fetch=True)
    method = build(config, torch.device(config.device))
    assert isinstance(method, DiffInstruct)
    for title, text in method.examine():
        click.echo(f"{title:<10} {text}")
    if (figures := compared(config, method)) is not None:
        click.echo(f"headroom   {figures}")
    click.echo(f"time       {cost(config, method, steps)}")


if __name__ == "__main__":
    main()
