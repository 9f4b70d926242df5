"""Measures how the cost of a Diff-Instruct step of small networks grows with batch and resolution.

    python tools/dev/scaling.py --json=docs/measurements/scaling.json --plot=docs/measurements/scaling.svg

The student is a StyleGAN2, teacher and fake score are U-Nets, each with the same widths at every resolution. Time is
the process's CPU time with one thread, the median of the rounds; memory is a step's peak beyond weights and moments.
Batches double from 1 up to --most-pixels per step. It prints a Markdown table; --plot needs stylegan-di[plot].
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import user_errors
from stylegan_di.dnnlib.util import UserError, atomic_file, atomic_write
from stylegan_di.journal.journal import Journal
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from tools.dev.benchmark import peak_mib, seconds
from tools.dev.benchmark_rows import step_of


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
    return step_of(student, teacher, fake_score, torch.device("cpu"))


def cost(resolution: int, batch_size: int, rounds: int) -> tuple[float, float]:
    """Measures images per second, and the memory in MiB."""
    method, device = method_of(resolution), torch.device("cpu")
    batch = Batch.of_step(
        seed=0, nimg=0, size=batch_size, batch_gpu=batch_size, rank=0, world_size=1, device=device
    )

    def step() -> None:
        method.step(batch, Journal())

    step()
    memory = peak_mib(step, device)
    return batch_size / statistics.median(seconds(step, device) for _ in range(rounds)), memory


@dataclass(frozen=True)
class Cell:
    """The measurements at one resolution and batch."""

    resolution: int
    batch: int
    images_per_second: float
    peak_mib: float


def grid(resolutions: Sequence[int], most_batch: int, most_pixels: int) -> Iterator[tuple[int, int]]:
    """Yields each resolution with batches 1, 2, 4, ... up to most_batch images and most_pixels pixels per step."""
    for resolution in resolutions:
        batch = 1
        while batch <= most_batch and batch * resolution**2 <= most_pixels:
            yield resolution, batch
            batch *= 2


@contextlib.contextmanager
def two_panels(path: Path) -> Iterator[Sequence[Any]]:
    """Yields two axes of a figure, which is then written in the format of the path's suffix.

    Raises:
        UserError: if matplotlib is not installed, or the suffix is not .svg or .png.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('--plot needs the package matplotlib: pip install "stylegan-di[plot]"') from None
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--plot={path}: accepted are names that end in .svg or .png")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    yield figure.subplots(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scaling"}), atomic_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Draws speed and memory against the batch, with one line per resolution."""
    with two_panels(path) as panels:
        for axes, name, label in zip(
            panels, ("images_per_second", "peak_mib"), ("images / s", "memory of a step, MiB"), strict=True
        ):
            for resolution in dict.fromkeys(cell.resolution for cell in cells):
                own = [cell for cell in cells if cell.resolution == resolution]
                values = [getattr(cell, name) for cell in own]
                axes.plot([cell.batch for cell in own], values, "o-", label=f"{resolution}x{resolution}")
            axes.set(xscale="log", yscale="log", xlabel="batch, images", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()


@click.command(help=__doc__.replace("\n    ", "\n\n    ") if __doc__ else None)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Timings of each cell.")
@click.option("--resolution", "resolutions", type=click.Choice(["16", "32", "64", "128", "256"]), multiple=True,
              default=("32", "64", "128", "256"), show_default=True, help="May be given several times.")
@click.option("--most-batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per step.")
@click.option("--most-pixels", type=click.IntRange(min=1), default=2**17, show_default=True, help="Pixels per step.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here too.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw them: .svg or .png.")
@user_errors
def main(
    rounds: int,
    resolutions: Sequence[str],
    most_batch: int,
    most_pixels: int,
    target: Path | None,
    picture: Path | None,
) -> None:
    """Prints each row as it is done."""
    keep_freed_memory()
    torch.set_num_threads(1)
    ops = build.load("cpu", may_build=True)
    click.echo("| resolution | batch | images/s | MiB |\n|---|---|---|---|")
    cells = []
    for resolution, batch in grid([int(side) for side in resolutions], most_batch, most_pixels):
        cells.append(cell := Cell(resolution, batch, *cost(resolution, batch, rounds)))
        click.echo(f"| {resolution} | {batch} | {cell.images_per_second:.1f} | {cell.peak_mib:.0f} |")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        report = {"ops": ops, "torch": torch.__version__, "rounds": rounds, "cells": [asdict(cell) for cell in cells]}
        atomic_write(target, json.dumps(report, indent=1).encode())
    if picture is not None:
        plot(cells, picture)


if __name__ == "__main__":
    main()
