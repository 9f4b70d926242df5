"""Measures how the speed and memory of training grow with processes, with whole and with sharded weights (FSDP2).

    python tools/dev/scaling_processes.py --model-channels=64 --batch=8 --json=docs/measurements/scaling-processes.json

Each row of the table is a run of train.py that distils an untrained U-Net of 32x32 colour images to one step, with one
thread per process. It gives the median images per second (wall clock) of the ticks after the first, and the memory of
the largest process. In each tick the first draws 80 images while the others wait, which many steps per tick make small.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import user_errors
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.snapshots.checkpoint import save_snapshot
from tools.dev.scaling import two_panels

ROOT = Path(__file__).resolve().parents[2]
TICKS = 3
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Run:
    """The measurements of a run."""

    processes: int
    fsdp: bool
    images_per_second: float
    process_mib: float

    def line(self) -> str:
        how = "spread" if self.fsdp else "whole"
        return f"| {self.processes} | {how} | {self.images_per_second:.2f} | {self.process_mib:.0f} |"


def save_teacher(path: Path, model_channels: int) -> None:
    """Saves an untrained U-Net with the architecture of EDM's for CIFAR-10, which has 128 channels."""
    torch.manual_seed(0)
    song = ARCHITECTURES["ddpmpp"] | dict(channel_mult=[2, 2, 2], num_blocks=4, attn_resolutions=[16], dropout=0)
    network = EDMPrecond(img_resolution=32, img_channels=3, model_channels=model_channels, **song)
    save_snapshot(path, {"ema": network.eval().requires_grad_(False)}, extras={"dataset_kwargs": {}}, metadata={})


def layouts(most: int) -> Iterator[tuple[int, bool]]:
    """Yields 1, 2, 4, ... processes, and whether weights are sharded, which needs more than one process."""
    count = 1
    while count <= most:
        yield from [(count, False)] + ([(count, True)] if count > 1 else [])
        count *= 2


def measure(teacher: Path, batch: int, steps: int, processes: int, fsdp: bool) -> Run:
    """Measures a run of TICKS ticks of `steps` steps.

    Raises:
        UserError: if the run fails; the message holds the end of its output.
    """
    outdir = teacher.parent / f"{processes}-{fsdp}"
    tick = batch * steps / 1000
    options = [f"--teacher={teacher}", f"--batch={batch}", f"--tick={tick}", f"--kimg={tick * TICKS}", "--snap=1000"]
    options += ["--kind=di", "--metrics=none", "--seed=0", "--device=cpu", f"--outdir={outdir}", f"--gpus={processes}"]
    command = [sys.executable, str(ROOT / "train.py"), *options, *(["--fsdp=true"] if fsdp else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(teacher.parent / "output.txt", "w+") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        largest = 0.0
        while run.poll() is None:
            largest = max([largest, *family_mib(run.pid)])
            time.sleep(POLL_SECONDS)
        if run.returncode:
            output.seek(0)
            raise UserError(f"{' '.join(command)}\nended with status {run.returncode}:\n{output.read()[-2000:]}")
    (log,) = outdir.glob("*/log.txt")
    rates = [float(rate) for rate in re.findall(r"images/s ([\d.]+)", log.read_text())]
    return Run(processes, fsdp, statistics.median(rates[1:]), largest)


def family_mib(ancestor: int) -> list[float]:
    """Returns the peak memory so far, in MiB, of a process and of each of its descendants."""
    parents, most = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
        except OSError:  # the process has ended in the meantime
            continue
        parent, memory = (re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE) for name in ("PPid", "VmHWM"))
        if parent and memory:  # kernel threads and ending processes have no memory
            parents[int(folder.name)], most[int(folder.name)] = int(parent[1]), int(memory[1]) / 1024
    family = {ancestor}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return [most[member] for member in family if member in most]


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draws speed and memory, with one bar per run."""
    names = [f"{run.processes}{', spread' if run.fsdp else ''}" for run in runs]
    with two_panels(path) as panels:
        for axes, name, label in zip(
            panels, ("images_per_second", "process_mib"), ("images / s", "memory of a process, MiB"), strict=True
        ):
            axes.bar(names, [getattr(run, name) for run in runs], width=0.6)
            axes.set(xlabel="processes", ylabel=label)


@click.command(help=__doc__.replace("\n    ", "\n\n    ") if __doc__ else None)
@click.option("--model-channels", type=click.IntRange(min=8), default=32, show_default=True, help="EDM's has 128.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images over all processes.")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps per tick.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True, help="Most processes.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here too.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw them: .svg or .png.")
@user_errors
def main(
    model_channels: int, batch: int, steps: int, processes: int, target: Path | None, picture: Path | None
) -> None:
    """Prints each row as it is done."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.pkl"
        save_teacher(teacher, model_channels)
        click.echo("| processes | weights | images/s | MiB of a process |\n|---|---|---|---|")
        for count, fsdp in layouts(processes):
            runs.append(measure(teacher, batch, steps, count, fsdp))
            click.echo(runs[-1].line())
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        report = {"torch": torch.__version__, "model_channels": model_channels, "batch": batch, "steps": steps}
        atomic_write(target, json.dumps(report | {"runs": [asdict(run) for run in runs]}, indent=1).encode())
    if picture is not None:
        plot(runs, picture)


if __name__ == "__main__":
    main()
