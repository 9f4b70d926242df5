"""Shows whether processes exchange gradients while they compute: the spans of both in steps of Diff-Instruct, by gloo.

    python tools/dev/overlap.py --processes=4 --json=out/overlap.json

Each process has one thread and the same share of the batch. It notes when its backward passes and its exchanges of
gradients begin and end; before each exchange all processes meet, so that waiting for a slower one is told from the
exchange itself. The seconds are a step's, by the wall clock: the median over the steps, then the mean over processes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.journal.journal import Journal
from stylegan_di.runs import processes as runs
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.ops import build
from stylegan_di.training.batch import Batch
from tools.dev.benchmark import report_file, table, write_report
from tools.dev.benchmark_rows import Step

CPU = torch.device("cpu")
COLUMNS = {"processes": "{processes}", "step": "{step:.3f} s", "backward": "{backward:.3f} s",
           "waiting for others": "{waiting:.3f} s", "exchange": "{exchange:.3f} s",
           "of it during a backward pass": "{overlap:.3f} s", "MiB": "{mib:.1f}"}  # fmt: skip


class Spans:
    """When calls began and ended, by name."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[float, float]]] = {"backward": [], "waiting": [], "exchange": []}
        self.bytes = 0

    def noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.of[name].append((start, time.perf_counter()))

        return noted

    def seconds(self, name: str) -> float:
        return sum(end - start for start, end in self.of[name])

    def overlap(self, one: str, other: str) -> float:
        """Seconds during which both go on."""
        return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in self.of[one] for b in self.of[other])


def measured_step(method: Any, batch: Batch) -> dict[str, float]:
    """A step's seconds, of which parts, and the MiB that it exchanges."""
    spans = Spans()
    meet = spans.noting("waiting", distributed.any_process)
    average = spans.noting("exchange", distributed.average)

    def exchange(tensors: Iterable[torch.Tensor]) -> None:
        gradients = list(tensors)
        meet(False)
        spans.bytes += sum(gradient.nbytes for gradient in gradients)
        average(gradients)

    start = time.perf_counter()
    with (
        patch.object(distributed, "average", exchange),
        patch.object(torch.autograd, "backward", spans.noting("backward", torch.autograd.backward)),
    ):
        method.step(batch, Journal())
    return {"step": time.perf_counter() - start, **{name: spans.seconds(name) for name in spans.of},
            "overlap": spans.overlap("exchange", "backward"), "mib": spans.bytes / 2**20}  # fmt: skip


@click.command(help=help_of(__doc__))
@click.option("--processes", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images over all processes.")
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="After one that warms up.")
@click.option("--size", type=click.Choice(["small", "cifar"]), default="small", show_default=True, help="Of networks.")
@report_file
@user_errors
def main(processes: int, batch: int, steps: int, size: str, target: Path | None) -> None:
    if processes > 1 and not runs.started():
        raise click.exceptions.Exit(runs.run(sys.orig_argv, processes))
    torch.set_num_threads(1)
    distributed.init(CPU)
    click.get_current_context().call_on_close(distributed.finish)
    build.load("cpu", may_build=distributed.rank() == 0)
    method = Step("EDM student", batch, CPU, plain=False, size=size).method
    rank, count = distributed.rank(), distributed.world_size()
    share = Batch.of_step(seed=0, nimg=0, size=batch, batch_gpu=batch // count, rank=rank, world_size=count, device=CPU)
    found = [measured_step(method, share) for _ in range(steps + 1)][1:]
    mine = {name: statistics.median(step[name] for step in found) for name in found[0]}
    every = distributed.gather_objects(mine)
    if rank == 0:
        row = {name: statistics.fmean(each[name] for each in every) for name in mine} | {"processes": count}
        table(COLUMNS, [row])
        write_report(target, {"batch": batch, "steps": steps, "size": size, **row})


if __name__ == "__main__":
    main()
