"""Says before a refinement whether it can help: is the teacher better than the GAN, do they fit, what will it cost?

    stylegan-di preflight --gan-pkl=fashion-gan.pkl
    stylegan-di preflight --gan-pkl=my-gan.pkl --teacher=edm-ffhq-64x64-uncond-vp.pkl --match=resize --ref=my.npz

Takes the options of `stylegan-di train --kind=di`. It measures the first metric of GAN and teacher (8 evaluations) on
--samples samples, looks at the GAN's samples through the teacher, and times some steps. The exit status is 2 if the
refinement is hopeless, that is if the teacher is no better or does not fit, unless --force is given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import torch

from stylegan_di import preflight, zoo
from stylegan_di.commands.train import default_of, new_config
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.cli import GroupedCommand, declared_options, user_errors
from stylegan_di.dnnlib.progress import PassProgress, format_time
from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.journal import Journal
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.table import is_better
from stylegan_di.options import options_of
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.sampling.diffusion_sampler import DPM_SOLVER
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods import DiffInstruct, build


def measured(config: TrainConfig, method: DiffInstruct, samples: int) -> Iterator[str]:
    """Yields a line for the first metric of the GAN and of each teacher.

    Raises:
        UserError: no teacher is better than the GAN.
    """
    name = config.metrics[0]
    evaluator = Evaluator(
        [name],
        str(zoo.resolve(preflight.reference_of(config) or "")),
        samples,
        detector_file=config.detector_file,
        device=method.device,
        report=PassProgress(),
    )
    gan = evaluator(method.model, seed=config.seed)
    first = next(iter(gan))
    yield f"GAN        {first} {gan[first]:.4g} on {samples} samples"
    found = []
    for each in method.instructions:
        teacher = evaluator(image_sampler(each.teacher, solver=DPM_SOLVER), seed=config.seed)
        found.append(teacher[first])
        yield f"teacher    {first} {teacher[first]:.4g}, drawn with 8 evaluations"
    if not any(is_better(name, value, gan[first]) for value in found) and not config.force:
        raise UserError(
            f"--teacher={config.teacher} is no better than --gan-pkl={config.gan_pkl} by {first}: choose another"
        )


def cost(config: TrainConfig, method: DiffInstruct, steps: int) -> Iterator[str]:
    """Yields lines for the time and memory of the run, from a few steps after a first one."""
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
    whole = format_time(seconds * config.kimg)
    yield f"time       {seconds:.2f} s/kimg over {steps} steps: {whole} for {config.kimg:g} kimg"
    if method.device.type == "cuda":
        yield f"memory     {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU"
    elif (peak := peak_memory()) is not None:
        yield f"memory     {peak / 2**30:.2f} GiB"


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@click.command(cls=GroupedCommand, help=(__doc__ or "").replace("\n    ", "\n\n    "))
@declared_options(options_of(TrainConfig), default_of)
@click.option("--samples", type=click.IntRange(min=2), default=1000, show_default=True, help="Samples of the metric.")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps that are timed.")
@user_errors
def main(samples: int, steps: int, **given: Any) -> None:
    config = replace(new_config("di", **given), gpus=None)
    if config.gan_pkl is None or config.teacher is None or config.trains_teacher:
        raise UserError("give --gan-pkl, the GAN to refine, and a teacher that there is already")
    preflight.check(config, processes=1, fetch=True)
    method = build(config, torch.device(config.device))
    assert isinstance(method, DiffInstruct)
    for title, text in method.examine():
        click.echo(f"{title:<10} {text}")
    if config.metrics:
        for line in measured(config, method, samples):
            click.echo(line)
    for line in cost(config, method, steps):
        click.echo(line)


if __name__ == "__main__":
    main()
