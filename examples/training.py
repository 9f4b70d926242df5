"""What the examples of students share: a training, started as by a user of train.py, and enlarged pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from stylegan_di import load_generator
from stylegan_di.commands.train import main as train
from stylegan_di.images import save_grid, to_uint8
from stylegan_di.interfaces import Generator

SCALE = 3  # factor by which pictures are enlarged


def example(doc: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a command of a function of outdir and options; options that are not its own are train.py's."""

    def made(function: Callable[..., Any]) -> click.Command:
        options = click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF TRAIN.PY]")
        outdir = click.option("--outdir", type=click.Path(path_type=Path), default="runs", show_default=True,
                              help="Folder that gets the run's folder, and the picture.")  # fmt: skip
        command = click.command(
            help=(doc or "").replace("\n    ", "\n\n    "), context_settings={"ignore_unknown_options": True}
        )
        return command(outdir(options(function)))

    return made


def trained(outdir: Path, *options: str) -> Generator:
    """Trains by `train.py --kind=di` with the options; returns the network of the last snapshot, on the CPU."""
    command = ["--kind=di", f"--outdir={outdir}", *options]
    click.echo("python train.py " + " ".join(command))
    status = train.main(command, standalone_mode=False)
    if status:
        raise click.exceptions.Exit(status)
    return load_generator(max(max(outdir.glob("[0-9]*")).glob("network-snapshot-*.pkl")))


def draw(path: Path, *rows: Tensor) -> None:
    """Writes rows of images [columns,C,H,W] in [-1,1] as one picture."""
    images = to_uint8(torch.cat(rows)).repeat_interleave(SCALE, dim=2).repeat_interleave(SCALE, dim=3)
    save_grid(images, path, columns=len(rows[0]))
    click.echo(f"drawn: {path}")
