"""Says before a refinement whether it can help: is the teacher better than the GAN, do they fit, what will it cost?

    stylegan-di preflight --gan-pkl=fashion-gan.pkl
    stylegan-di preflight --gan-pkl=my-gan.pkl --teacher=edm-ffhq-64x64-uncond-vp.pkl --match=resize --ref=my.npz

Takes the options of `stylegan-di train --kind=di`. It looks at the GAN's samples through the teacher, measures the
first metric of GAN and teacher (8 evaluations) on --headroom samples, 1000 if neither you nor a preset says, and times
some steps in one process. The exit status is 2 if the refinement is hopeless, that is if the teacher is no better or
does not fit, unless --force is given.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import chain
from typing import Any

import click
import torch

from stylegan_di import preflight
from stylegan_di.commands.train import default_of, new_config
from stylegan_di.config import TrainConfig
from stylegan_di.config.derived import HEADROOM
from stylegan_di.dnnlib.cli import GroupedCommand, declared_options, help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.journal.resources import estimate
from stylegan_di.options import options_of
from stylegan_di.runs.endings import StopRequest
from stylegan_di.training import precision
from stylegan_di.training.batch import Batch
from stylegan_di.training.evaluation import make_glance, reference_of
from stylegan_di.training.methods import DiffInstruct, build


def cost(config: TrainConfig, method: DiffInstruct, steps: int) -> str:
    """The time and memory of the run, from a few steps after a first one; the warm-up is over in them."""
    journal = Journal([], method.device)
    method.state.cur_nimg = nimg = math.ceil(config.fake_warmup * 1000)
    start = time.monotonic()
    for step in range(steps + 1):
        if step == 1:
            start = time.monotonic()
        batch = Batch.of_step(
            seed=config.seed, nimg=nimg + step * config.batch, size=config.batch,
            batch_gpu=config.batch_gpu or config.batch, rank=0, world_size=1, device=method.device,
        )  # fmt: skip
        method.step(batch, journal)
        if method.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / steps / config.batch * 1000
    return f"{estimate(seconds, config.kimg, method.device)}, from {steps} step{'s' if steps > 1 else ''}"


@click.command(cls=GroupedCommand, kind="di", help=help_of(__doc__))
@declared_options(options_of(TrainConfig), default_of)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps that are timed.")
@user_errors
def main(steps: int, **given: Any) -> None:
    config = new_config("di", **given)
    if config.headroom is None:
        config = replace(config, headroom=HEADROOM)
    if config.gpus not in (None, 1):
        raise UserError(f"--gpus={config.gpus}: the preflight measures in one process; leave it out, and --fsdp too")
    if config.gan_pkl is None or config.teacher is None or config.trains_teacher:
        raise UserError("give --gan-pkl, the GAN to refine, and a teacher that there is already")
    preflight.check(config, processes=1, fetch=True)
    method = build(config, torch.device(config.device))
    assert isinstance(method, DiffInstruct)
    found = method.examine(make_glance(method, reference_of(method), StopRequest()), factor=1.0)
    for title, text in chain(precision.settle(method), found):
        click.echo(f"{title:<10} {text}")
    click.echo(f"time       {cost(config, method, steps)}")


if __name__ == "__main__":
    main()
