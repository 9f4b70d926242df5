"""How the cost of a Diff-Instruct step of small networks grows with batch and resolution, as a table in Markdown.

    python tools/scaling.py

The student is a StyleGAN2, teacher and fake score are U-Nets, each with the same widths at every resolution. Time is
the process's on the CPU, one thread, the median of the rounds; memory is what a step takes at its most.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from dnnlib.cli import user_errors
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.loss_di import IKL
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.students import StyleGAN2Student
from stylegan_di.teachers import EDMTeacher
from stylegan_di.training import updates
from stylegan_di.training.build import ARCHITECTURES
from stylegan_di.training.report import Statistics
from stylegan_di.training.state import Batch, TrainState
from tools.benchmark import peak_mib, seconds
from torch_utils.allocator import keep_freed_memory
from torch_utils.ops import build


def networks(resolution: int) -> tuple[TrainState, EDMTeacher]:
    """A student with its fake score, and a teacher."""
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
    state = TrainState(student, student, {}, EDMTeacher(EDMPrecond(**song)))
    teacher = EDMTeacher(EDMPrecond(**song))
    for name, module in (("model", student), ("fake_score", state.fake_score), ("", teacher)):
        assert module is not None
        module.eval().requires_grad_(False)
        if name:
            state.optimizers[name] = torch.optim.Adam(module.parameters(), lr=1e-5, betas=(0.0, 0.99), fused=True)
    return state, teacher


def cost(resolution: int, batch_size: int, rounds: int) -> tuple[float, float]:
    """Images a second, and MiB."""
    state, teacher = networks(resolution)
    device, law = torch.device("cpu"), LogNormalLaw()
    batch = Batch.of_step(
        seed=0, nimg=0, size=batch_size, batch_gpu=batch_size, rank=0, world_size=1, device=device
    )

    def step() -> torch.Tensor:
        report = Statistics()
        samples = updates.student_samples(state, batch)
        updates.fake_score_update(state, batch, law, report, samples)
        updates.student_update(state, batch, teacher, IKL(), law, 0.0, report, samples)
        return torch.zeros(())

    step()
    memory = peak_mib(step, device)
    return batch_size / statistics.median(seconds(step, device) for _ in range(rounds)), memory


@click.command(help=__doc__.replace("\n    ", "\n\n    ") if __doc__ else None)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Timings of each cell.")
@user_errors
def main(rounds: int) -> None:
    """Prints a row as it is done."""
    keep_freed_memory()
    torch.set_num_threads(1)
    build.load("cpu", may_build=True)
    click.echo("| resolution | batch | images/s | MiB |\n|---|---|---|---|")
    for resolution, batch in [(32, 1), (32, 4), (32, 16), (32, 64), (64, 16), (128, 4), (256, 1)]:
        rate, memory = cost(resolution, batch, rounds)
        click.echo(f"| {resolution} | {batch} | {rate:.1f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
