"""Makes images with a GAN, a one-step student, or a diffusion teacher.

    stylegan-di generate --network=runs/00000-.../network-best.pkl --seeds=0-63 --grid=grid.png
    stylegan-di generate --network=cifar10.pkl --seeds=0,3,10-20 --class=2 --trunc=0.7
    stylegan-di generate --network=fashion-gan.pkl --seeds=0-15 --class=bag,0-2 --trunc=0.5 --trunc-mode=class
    stylegan-di generate --network=stylegan3-r-afhqv2-512x512.pkl --seeds=2 --translate=0.1,0 --rotate=45
    stylegan-di generate --network=edm-cifar10-32x32-cond-vp.pkl --seeds=0-15 --steps=18
    stylegan-di generate --network=baseline-cifar10-32x32-uncond-ve.pkl --seeds=0-15 --solver=euler --disc=ve

A seed gives the same image whatever other seeds are requested, and however many at a time.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from stylegan_di.commands.options import (
    class_options,
    device_option,
    entry_options,
    given,
    noise_mode_option,
    sampler_options,
    truncation_options,
)
from stylegan_di.dnnlib.cli import Choice, CommaList, Seeds, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.explore.opening import asked_for, one_asked_for, one_label, open_generator, open_of_w
from stylegan_di.explore.projection import draw as draw_ws
from stylegan_di.explore.projection import load_projection
from stylegan_di.images import save_grid, save_image
from stylegan_di.interfaces import Generator
from stylegan_di.labels import Chosen
from stylegan_di.sampling.ablation import DISCRETIZATIONS, SCALINGS, SCHEDULES
from stylegan_di.sampling.seeded import call_size, uint8_images
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build as kernels

GRID_FORMATS = (".png", ".jpg", ".jpeg")
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)


def draw_projection(network: str, path: Path, outdir: Path, device: str, others: dict[str, Any]) -> None:
    """Draws the result of stylegan-di project; others: options by name, few of which apply to it.

    A refiner is told the class, which a GAN's w has in it.
    """
    student = open_of_w(network).to(device)
    accepted = ("--noise-mode",) if student.label_in_w else ("--class", "--label")
    for option, value in others.items():
        if value is not None and option not in accepted:
            raise UserError(f"{option} is for images of seeds; leave it out with --projected-w")
    labels = None
    if not student.label_in_w:
        labels = one_label(student, one_asked_for(student, others["--class"], others["--label"]))
    of_w = student.of_w(None if labels is None else labels.to(device))
    ws, noises = load_projection(path, of_w)
    noise_mode = others.get("--noise-mode") or "const"
    writable_folder(f"--outdir={outdir}", outdir)
    if noise_mode == "const":
        images = draw_ws(of_w, ws, noises)
    else:
        images = student.with_options(noise_mode=noise_mode).uint8_of_ws(ws, range(len(ws)))
    for index, image in enumerate(images):
        save_image(image, outdir / f"proj{index:02d}.png")
    click.echo(f"{len(ws)} images in {outdir}")


def draw_seeds(
    generator: Generator, seeds: list[int], chosen: Chosen | None, outdir: Path, grid: Path | None, batch: int
) -> None:
    """Writes an image a seed into a folder, and all of them as a grid, `batch` at a time."""
    writable_folder(f"--outdir={outdir}", outdir)
    draw = partial(generator.draw, class_index=chosen)
    size = call_size(next(generator.parameters()).device, max(generator.image_shape[1:]))
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


@click.command(help=help_of(__doc__))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="Network file, or a known name.")
@entry_options
@click.option("--seeds", type=Seeds(), metavar="LIST", help="Such as 0,3,10-20: one image each.  [default: 0-63]")
@click.option("--projected-w", type=click.Path(path_type=Path), metavar="FILE",
              help="[GAN] Draw a result of stylegan-di project (proj00.png, ...) instead of seeds.")
@class_options(", or several such as 0-9 or cat,dog: each gets a folder class0, ..., and a grid, of its own")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True,
              help="Folder for seed0000.png, ...")
@click.option("--grid", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also write all images as one grid.")
@device_option
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True,
              help="Images to make before they are written; does not change the images.")
@truncation_options
@noise_mode_option
@click.option("--translate", type=CommaList(float), metavar="X,Y",
              help="[StyleGAN3] Move the picture right and down, in pictures.  [default: 0,0]")
@click.option("--rotate", type=float, metavar="DEG", help="[StyleGAN3] Turn it anticlockwise.  [default: 0]")
@sampler_options
@click.option("--sigma-min", type=POSITIVE, help="[teacher] Lowest noise level.  [default: 0.002 with heun, edm]")
@click.option("--sigma-max", type=POSITIVE, help="[teacher] Highest noise level.  [default: 80 with heun, edm]")
@click.option("--rho", type=POSITIVE, help="[teacher] Higher puts more levels at the low end.  [default: 7]")
@click.option("--S_churn", "S_churn", type=NOT_NEGATIVE, help="[teacher] Stochasticity (churn).  [default: 0]")
@click.option("--S_min", "S_min", type=NOT_NEGATIVE, help="[teacher] Lowest noise level with churn.  [default: 0]")
@click.option("--S_max", "S_max", type=NOT_NEGATIVE, help="[teacher] Highest noise level with churn.  [default: inf]")
@click.option("--S_noise", "S_noise", type=NOT_NEGATIVE, help="[teacher] Deviation of churn's noise.  [default: 1]")
@click.option("--disc", type=Choice(list(DISCRETIZATIONS)),
              help="[teacher] Noise levels.  [default: edm]")
@click.option("--schedule", type=Choice(SCHEDULES), help="[teacher] sigma(t).  [default: linear]")
@click.option("--scaling", type=Choice(SCALINGS), help="[teacher] s(t).  [default: none]")
@user_errors
def main(
    network: str,
    which: str | None,
    autoencoder: str | None,
    seeds: list[int] | None,
    projected_w: Path | None,
    classes: str | None,
    label: tuple[float, ...] | None,
    outdir: Path,
    grid: Path | None,
    device: str,
    batch: int,
    **options: float | str | tuple[float, ...] | None,
) -> None:
    keep_freed_memory()
    own = given(**options)
    if projected_w is not None:
        others: dict[str, Any] = {"--seeds": seeds, "--class": classes, "--label": label, "--grid": grid,
                                  "--autoencoder": autoencoder}  # fmt: skip
        others |= {option_name(name): value for name, value in own.items()}
        return draw_projection(network, projected_w, outdir, device, others)
    seeds = list(range(64)) if seeds is None else seeds
    for name, value in own.items():
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("S_max", math.inf):
            raise UserError(f"{option_name(name)}={value}: accepted are finite numbers")
    if grid is not None and grid.suffix.lower() not in GRID_FORMATS:
        raise UserError(f"--grid={grid}: its name must end in {', '.join(GRID_FORMATS)}")
    kernels.load(device.partition(":")[0], may_build=False)
    generator = open_generator(network, which, autoencoder).with_options(**own).to(device)
    asked = asked_for(generator, classes, label)
    if grid is not None:
        writable_folder(f"--grid={grid}", grid.parent)
    if len(asked) < 2:
        return draw_seeds(generator, seeds, asked[0] if asked else None, outdir, grid, batch)
    for each in asked:
        its_grid = None if grid is None else grid.with_name(f"{grid.stem}-class{each}{grid.suffix}")
        draw_seeds(generator, seeds, each, outdir / f"class{each}", its_grid, batch)
