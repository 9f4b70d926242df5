"""Makes images: of a GAN, of a one-step student, or of a diffusion teacher with EDM's sampler.

    python generate.py --network=runs/00000-.../network-best.pkl --seeds=0-63 --grid=grid.png
    python generate.py --network=cifar10.pkl --seeds=0,3,10-20 --class=2 --trunc=0.7
    python generate.py --network=edm-cifar10-32x32-cond-vp.pkl --seeds=0-15 --steps=18

A seed gives the same image whatever other seeds are asked for, and however many at a time.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.cli import Device, Seeds, default_device, user_errors, writable_folder
from dnnlib.progress import Progress
from dnnlib.util import UserError
from stylegan_di.checkpoint import as_model, load_snapshot
from stylegan_di.images import save_grid, save_image
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.sampling import heun_sampler
from stylegan_di.seeded import Draw, call_size, gan_images, one_step_images, teacher_images, uint8_images
from stylegan_di.students import OneStepStudent, StyleGAN2Student

GRID_FORMATS = (".png", ".jpg", ".jpeg")
GAN = {"truncation_psi": "--trunc", "noise_mode": "--noise-mode"}
SAMPLER = {"num_steps": "--steps", "sigma_min": "--sigma-min", "sigma_max": "--sigma-max", "rho": "--rho",
           "S_churn": "--S_churn", "S_min": "--S_min", "S_max": "--S_max", "S_noise": "--S_noise"}  # fmt: skip
#: What the options of one kind of network are called; those of another kind are refused.
OPTIONS = {"GAN": GAN, "one-step student": {}, "diffusion teacher": SAMPLER}

POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)


def load(network: str, which: str | None = None) -> Generator | Denoiser:
    """The generator of a network file, or its diffusion teacher; of several networks the one chosen."""
    model = as_model(load_snapshot(network, which))
    if model.img_channels not in (1, 3):
        raise UserError(f"--network={network}: its images have {model.img_channels} channels; pictures have 1 or 3")
    return model


def drawing(model: Generator | Denoiser, class_index: int | None, given: dict[str, Any]) -> Draw:
    """How the model makes images, with the options given."""
    if isinstance(model, Denoiser):
        check_options("diffusion teacher", given)
        check_sampler(given)
        return partial(teacher_images, model, class_index=class_index, sampler=partial(heun_sampler, **given))
    if isinstance(model, StyleGAN2Student):
        check_options("GAN", given)
        return partial(gan_images, model, class_index=class_index, **given)
    assert isinstance(model, OneStepStudent)  # what else a network file can hold
    check_options("one-step student", given)
    return partial(one_step_images, model, class_index=class_index)


def check_options(kind: str, given: dict[str, Any]) -> None:
    """Raises UserError for options that are another kind's."""
    for other, options in OPTIONS.items():
        for name in given.keys() & options.keys() - OPTIONS[kind].keys():
            raise UserError(f"{options[name]}={given[name]} is for a {other}; this network is a {kind}: leave it out")


def check_sampler(given: dict[str, Any]) -> None:
    """Raises UserError for noise levels in the wrong order, and for options of a stochasticity that is off."""
    levels = {"sigma_min": 0.002, "sigma_max": 80.0} | given
    if not levels["sigma_min"] < levels["sigma_max"]:
        raise UserError(f"--sigma-min={levels['sigma_min']:g} is not below --sigma-max={levels['sigma_max']:g}")
    for name in ("S_min", "S_max", "S_noise"):
        if name in given and not given.get("S_churn"):
            raise UserError(f"--{name}={given[name]:g} needs --S_churn above 0: leave it out, or give both")


def check_class(class_index: int | None, label_dim: int) -> None:
    """Raises UserError for a class that the network does not have."""
    if class_index is not None and not label_dim:
        raise UserError(f"--class={class_index}: this network is unconditional; leave it out")
    if class_index is not None and class_index >= label_dim:
        raise UserError(f"--class={class_index}: this network has the classes 0 to {label_dim - 1}")


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="Network file, or a known name.")
@click.option("--which", metavar="ENTRY", help="The network in a file of several, such as G.  [default: G_ema or ema]")
@click.option("--seeds", type=Seeds(), required=True, metavar="LIST", help="Such as 0,3,10-20: one image each.")
@click.option("--class", "class_index", type=click.IntRange(min=0), metavar="N",
              help="Class of a conditional network.  [default: drawn from the seed]")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True,
              help="Folder for seed0000.png, ...")
@click.option("--grid", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write all in one.")
@click.option("--device", type=Device(), help="cuda, cuda:N or cpu.  [default: cuda when there]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True,
              help="Images made before they are written; changes none of them.")
@click.option("--trunc", "truncation_psi", type=float, help="[GAN] Truncation psi.  [default: 1]")
@click.option("--noise-mode", type=click.Choice(["const", "random", "none"]),
              help="[GAN] Noise inputs; random: drawn from the seed.  [default: const]")
@click.option("--steps", "num_steps", type=click.IntRange(min=1), help="[teacher] Steps.  [default: 18]")
@click.option("--sigma-min", type=POSITIVE, help="[teacher] Lowest noise level.  [default: 0.002]")
@click.option("--sigma-max", type=POSITIVE, help="[teacher] Highest noise level.  [default: 80]")
@click.option("--rho", type=POSITIVE, help="[teacher] How levels crowd at the lower end.  [default: 7]")
@click.option("--S_churn", "S_churn", type=NOT_NEGATIVE, help="[teacher] Stochasticity.  [default: 0]")
@click.option("--S_min", "S_min", type=NOT_NEGATIVE, help="[teacher] Lowest level with it.  [default: 0]")
@click.option("--S_max", "S_max", type=NOT_NEGATIVE, help="[teacher] Highest level with it.  [default: inf]")
@click.option("--S_noise", "S_noise", type=NOT_NEGATIVE, help="[teacher] Its noise's deviation.  [default: 1]")
@user_errors
def main(
    network: str,
    which: str | None,
    seeds: list[int],
    class_index: int | None,
    outdir: Path,
    grid: Path | None,
    device: str | None,
    batch: int,
    **options: float | str | None,
) -> None:
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("S_max", math.inf):
            raise UserError(f"{(GAN | SAMPLER)[name]}={value}: accepted are finite numbers")
    if grid is not None and grid.suffix.lower() not in GRID_FORMATS:
        raise UserError(f"--grid={grid}: its name must end in {', '.join(GRID_FORMATS)}")
    model = load(network, which).to(device or default_device())
    check_class(class_index, model.label_dim)
    draw = drawing(model, class_index, given)
    size = call_size(next(model.parameters()).device, model.img_resolution)

    writable_folder(f"--outdir={outdir}", outdir)
    if grid is not None:
        writable_folder(f"--grid={grid}", grid.parent)
    progress = Progress("Images", len(seeds))
    kept = []
    for start in range(0, len(seeds), batch):
        chunk = seeds[start : start + batch]
        images = uint8_images(draw, chunk, size)
        for seed, image in zip(chunk, images, strict=True):
            save_image(image, outdir / f"seed{seed:04d}.png")
        if grid is not None:
            kept.append(images)
        progress.update(start + len(chunk))
    progress.close()
    if grid is not None:
        save_grid(torch.cat(kept), grid, columns=math.ceil(math.sqrt(len(seeds))))
    click.echo(f"{len(seeds)} images in {outdir}" + (f", all in {grid}" if grid is not None else ""))


if __name__ == "__main__":
    main()
