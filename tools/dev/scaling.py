"""Measures how costs grow: of a Diff-Instruct step, of a training with its processes, and of generation for metrics.

    python tools/dev/scaling.py steps --json=docs/measurements/scaling.json --plot=docs/measurements/scaling.svg
    python tools/dev/scaling.py processes --model-channels=64 --batch=8 --json=out/processes.json
    python tools/dev/scaling.py metrics --num=1000 --json=out/metrics-cost.json

Time is the process's CPU time with one thread, the median of the rounds; the processes' is by the wall clock. Each
command prints Markdown tables, each row as it is done; --plot needs stylegan-di[plot].
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

import stylegan_di
from stylegan_di.commands.spectrum import load_matplotlib, save_figure
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import generated_images
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception import Inception
from stylegan_di.metrics.statistics import FeatureSums
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.snapshots.checkpoint import save_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from tools.dev.benchmark import Measured, peak_mib, report_file, seconds, table, write_report
from tools.dev.benchmark_rows import step_of, stylegan2, unet

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
COSTS = {"images/s": "{images_per_second:.1f}", "MiB": "{peak_mib:.0f}"}

picture_file = click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False),
                            help="Draw them: .svg or .png.")  # fmt: skip


@contextlib.contextmanager
def two_panels(path: Path) -> Iterator[Sequence[Any]]:
    """Yields two axes of a figure, which is then written in the format of the path's suffix.

    Raises:
        UserError: if matplotlib is not installed, or the suffix is not .svg or .png.
    """
    _, figure_class = load_matplotlib("--plot")
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--plot={path}: accepted are names that end in .svg or .png")
    figure = figure_class(figsize=(9, 3.6), layout="constrained")
    yield figure.subplots(1, 2)
    save_figure(figure, path, {"svg.fonttype": "none", "svg.hashsalt": "scaling"})


def begin() -> str:
    """Sets one thread and the allocator as in a training; returns what the ops run on."""
    keep_freed_memory()
    torch.set_num_threads(1)
    return build.load("cpu", may_build=True)


@click.group(help=help_of(__doc__))
def main() -> None:
    """The commands below."""


# A step of small networks, by batch and resolution.


def method_of(resolution: int) -> DiffInstruct:
    """Makes a student with its fake score and a teacher."""
    torch.manual_seed(0)
    levels = resolution.bit_length() - 3  # down to 8x8
    song: dict[str, Any] = ARCHITECTURES["ddpmpp"] | dict(
        img_resolution=resolution, img_channels=3, model_channels=16, channel_mult=[1] * levels, num_blocks=1,
        attn_resolutions=[8], dropout=0,
    )  # fmt: skip
    widths: dict[str, Any] = dict(channel_base=32 * resolution, channel_max=32)
    student = StyleGAN2Student(
        StyleGAN2(64, 0, 64, resolution, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=widths)
    )
    fake_score, teacher = EDMTeacher(EDMPrecond(**song)), EDMTeacher(EDMPrecond(**song))
    return step_of(student, teacher, fake_score, CPU)


def step_cost(resolution: int, size: int, rounds: int) -> Measured:
    """Measures images per second, and a step's peak memory beyond weights and moments."""
    method = method_of(resolution)
    batch = Batch.of_step(seed=0, nimg=0, size=size, batch_gpu=size, rank=0, world_size=1, device=CPU)

    def step() -> None:
        method.step(batch, Journal())

    step()
    memory = peak_mib(step, CPU)
    speed = size / statistics.median(seconds(step, CPU) for _ in range(rounds))
    return {"resolution": resolution, "batch": size, "images_per_second": speed, "peak_mib": memory}


def grid(resolutions: Sequence[int], most_batch: int, most_pixels: int) -> Iterator[tuple[int, int]]:
    """Yields each resolution with batches 1, 2, 4, ... up to most_batch images and most_pixels pixels per step."""
    for resolution in resolutions:
        batch = 1
        while batch <= most_batch and batch * resolution**2 <= most_pixels:
            yield resolution, batch
            batch *= 2


def plot_steps(cells: Sequence[Measured], path: Path) -> None:
    """Draws speed and memory against the batch, with one line per resolution."""
    labels = {"images_per_second": "images / s", "peak_mib": "memory of a step, MiB"}
    with two_panels(path) as panels:
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            for resolution in dict.fromkeys(cell["resolution"] for cell in cells):
                own = [cell for cell in cells if cell["resolution"] == resolution]
                values = [cell[name] for cell in own]
                axes.plot([cell["batch"] for cell in own], values, "o-", label=f"{resolution}x{resolution}")
            axes.set(xscale="log", yscale="log", xlabel="batch, images", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()


@main.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Timings of each cell.")
@click.option("--resolution", "resolutions", type=click.Choice(["16", "32", "64", "128", "256"]), multiple=True,
              default=("32", "64", "128", "256"), show_default=True, help="May be given several times.")
@click.option("--most-batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per step.")
@click.option("--most-pixels", type=click.IntRange(min=1), default=2**17, show_default=True, help="Pixels per step.")
@report_file
@picture_file
@user_errors
def steps(
    rounds: int, resolutions: Sequence[str], most_batch: int, most_pixels: int, target: Path | None,
    picture: Path | None,
) -> None:  # fmt: skip
    """Diff-Instruct steps of a StyleGAN2 and U-Nets with the same widths at every resolution; batches double from 1."""
    ops = begin()
    columns = {"resolution": "{resolution}", "batch": "{batch}", **COSTS}
    places = grid([int(side) for side in resolutions], most_batch, most_pixels)
    cells = table(columns, (step_cost(resolution, batch, rounds) for resolution, batch in places))
    write_report(target, {"ops": ops, "rounds": rounds, "cells": cells})
    if picture is not None:
        plot_steps(cells, picture)


# A training, by its number of processes, with whole and with sharded weights (FSDP2).

TICKS = 3
POLL_SECONDS = 0.1


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


def run_cost(teacher: Path, batch: int, steps: int, processes: int, fsdp: bool) -> Measured:
    """Measures a run of TICKS ticks of `steps` steps: the median speed of all but the first, the largest process.

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
    speed = statistics.median(rates[1:])
    weights = "spread" if fsdp else "whole"
    return {"processes": processes, "weights": weights, "images_per_second": speed, "process_mib": largest}


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


def plot_processes(runs: Sequence[Measured], path: Path) -> None:
    names = [f"{run['processes']}{', spread' if run['weights'] == 'spread' else ''}" for run in runs]
    labels = {"images_per_second": "images / s", "process_mib": "memory of a process, MiB"}
    with two_panels(path) as panels:
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            axes.bar(names, [run[name] for run in runs], width=0.6)
            axes.set(xlabel="processes", ylabel=label)


@main.command()
@click.option("--model-channels", type=click.IntRange(min=8), default=32, show_default=True, help="EDM's has 128.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images over all processes.")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps per tick.")
@click.option("--processes", "most", type=click.IntRange(min=1), default=2, show_default=True, help="Most processes.")
@report_file
@picture_file
@user_errors
def processes(
    model_channels: int, batch: int, steps: int, most: int, target: Path | None, picture: Path | None
) -> None:
    """Runs of train.py that distil an untrained U-Net of 32x32 colour images, with one thread per process.

    In each tick the first process draws 80 images while the others wait, which many steps per tick make small.
    """
    columns = {"processes": "{processes}", "weights": "{weights}", "images/s": "{images_per_second:.2f}",
               "MiB of a process": "{process_mib:.0f}"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.pkl"
        save_teacher(teacher, model_channels)
        runs = table(columns, (run_cost(teacher, batch, steps, count, fsdp) for count, fsdp in layouts(most)))
    write_report(target, {"model_channels": model_channels, "batch": batch, "steps": steps, "runs": runs})
    if picture is not None:
        plot_processes(runs, picture)


# Generation for metrics, by batch, and the parts of FID for small images.

TOTAL = 10000  # number of images to which the parts' seconds are scaled

GENERATORS: dict[str, Callable[[], Generator]] = {
    "fashion-gan.pkl, 16x16": lambda: stylegan_di.load_generator("fashion-gan.pkl"),
    "small StyleGAN2, 32x32": lambda: StyleGAN2Student(stylegan2("small", CPU)),
    "StyleGAN2 cifar (20M), 32x32": lambda: StyleGAN2Student(stylegan2("cifar", CPU)),
    "small one-step U-Net, 32x32": lambda: OneStepStudent(unet("small", CPU), 2.5),
}


def generate(generator: Generator, num: int, batch: int) -> Tensor:
    """Generates images as for metrics: with latents, labels and the conversion to bytes."""
    return torch.cat(list(generated_images(generator, num=num, batch=batch)))


def generation_speeds(batches: Iterable[int], num: int, rounds: int) -> Iterator[Measured]:
    """Measures each batch with at least `num` images; the batches alternate, so that a busy machine slows all alike."""
    for name, make in GENERATORS.items():
        generator = make()
        calls = {batch: partial(generate, generator, max(num, batch), batch) for batch in batches}
        times: dict[int, list[float]] = {batch: [] for batch in calls}
        generate(generator, num, num)
        for _ in range(rounds):
            for batch, call in calls.items():
                times[batch].append(seconds(call, CPU) / max(num, batch))
        for batch in calls:
            memory = peak_mib(partial(generate, generator, batch, batch), CPU)
            speed = 1 / statistics.median(times[batch])
            yield {"generator": name, "batch": batch, "images_per_second": speed, "peak_mib": memory}


def part(name: str, images: int, time: float, once: bool = False) -> Measured:
    """A part's seconds for `images` images, and scaled to TOTAL of them."""
    return {"name": name, "images": images, "seconds": time, "scaled": time if once else time * TOTAL / images}


def feature_parts(extractor: FeatureExtractor, label: str, images: Tensor, batch: int) -> Iterator[Measured]:
    """Times the extraction, the sums, and the distance between the two halves' statistics."""
    features: list[Tensor] = []
    halves = [FeatureSums(extractor.dim) for _ in range(2)]

    def extraction() -> None:
        with torch.no_grad():
            features.extend(extractor(chunk) for chunk in images.split(batch))

    def sums() -> None:
        for index, chunk in enumerate(features):
            halves[index % 2].append(chunk)

    def distance() -> None:
        a, b = (half.finish(extractor=extractor.name) for half in halves)
        frechet_distance(a.mean, a.cov, b.mean, b.cov)

    extractor(images[:batch])  # not timed: the first call prepares convolutions
    yield part(f"{label}: features", len(images), seconds(extraction, CPU))
    yield part(f"{label}: sums for mean and covariance", len(images), seconds(sums, CPU))
    yield part(f"{label}: Frechet distance, once", len(images), seconds(distance, CPU), once=True)


def inception() -> FeatureExtractor:
    """Returns an optimized Inception with random weights."""
    torch.manual_seed(0)
    return Inception().eval().requires_grad_(False).optimized()


def metric_parts(num: int, batch: int) -> Iterator[Measured]:
    """Times the generation by each generator, then the processing of the images."""
    for name, make in GENERATORS.items():
        generator = make()
        generate(generator, batch, batch)
        yield part(f"generation: {name}", num, seconds(partial(generate, generator, num, batch), CPU))
    images = torch.randint(0, 256, [num, 3, 32, 32], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    yield from feature_parts(inception(), "Inception, 2048", images, batch)
    yield from feature_parts(open_extractor("fashion", None), "fashion classifier, 64", images, batch)


@main.command()
@click.option("--batches", default="1,2,4,8,16,32,64,128,256", show_default=True, help="Comma-separated.")
@click.option("--num", type=click.IntRange(min=2), default=1000, show_default=True, help="Images for the parts.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Batch for the parts.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Timings of each batch.")
@report_file
@user_errors
def metrics(batches: str, num: int, batch: int, rounds: int, target: Path | None) -> None:
    """Images per second of generation by batch, and the parts of FID for small images. Inception has random weights."""
    ops = begin()
    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        raise UserError(f"--batches={batches}: accepted are whole numbers, such as 1,8,64") from None
    speeds = table({"generator": "{generator}", "batch": "{batch}", **COSTS}, generation_speeds(sizes, 64, rounds))
    click.echo()
    columns = {"part": "{name}", f"s of {num} images": "{seconds:.2f}", f"s of {TOTAL}": "{scaled:.1f}"}
    parts = table(columns, metric_parts(num, batch))
    write_report(target, {"ops": ops, "rounds": rounds, "batch": batch, "total": TOTAL, "speeds": speeds,
                          "parts": parts})  # fmt: skip


if __name__ == "__main__":
    main()
