"""Mixes styles: shows every row's image with some styles of every column's image.

    stylegan-di style-mix --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --styles=0-6 --outdir=out
    stylegan-di style-mix --network=ffhq.pkl --rows-w=me/projected_w.npz --cols=55,821 --outdir=out

Writes <row>-<column>.png and grid.png, whose first row and column show the unmixed images. Projections
(stylegan-di project) come before the seeds, and are named w0, w1, ...; their noise maps are not used. The noise of
--noise-mode=random is that of the row's seed.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor

from stylegan_di.commands.options import class_options, device_option, given, noise_mode_option, truncation_options
from stylegan_di.dnnlib.cli import Seeds, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.latents import coarse_styles, mix_styles
from stylegan_di.explore.opening import one_asked_for, open_gan
from stylegan_di.explore.projection import joined_ws
from stylegan_di.images import save_grid, save_image


@click.command(help=help_of(__doc__))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="Network file of a GAN, or a known name.")
@click.option("--rows", type=Seeds(), metavar="LIST", help="Seeds of the rows, such as 85,100-103.")
@click.option("--cols", type=Seeds(), metavar="LIST", help="Seeds of the columns.")
@click.option("--rows-w", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Projections as rows; may be given more than once.")
@click.option("--cols-w", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Projections as columns; may be given more than once.")
@click.option("--styles", type=Seeds(), metavar="LIST",
              help="Styles to take from the column, from 0 (coarse).  [default: 0-6 of 18, in proportion]")
@truncation_options
@noise_mode_option
@class_options()
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True)
@device_option
@user_errors
def main(
    network: str,
    rows: list[int] | None,
    cols: list[int] | None,
    rows_w: tuple[Path, ...],
    cols_w: tuple[Path, ...],
    styles: list[int] | None,
    classes: str | None,
    label: tuple[float, ...] | None,
    outdir: Path,
    device: str,
    **options: float | str | None,
) -> None:
    rows, cols = rows or [], cols or []
    for name, asked in (("rows", rows or rows_w), ("cols", cols or cols_w)):
        if not asked:
            raise UserError(f"--{name} is missing: give seeds, or projections by --{name}-w")
    gan = open_gan(network).with_options(**given(**options)).to(device)
    chosen = one_asked_for(gan, classes, label)
    num_ws = gan.network.num_ws
    if styles is not None and max(styles) >= num_ws:
        raise UserError(f"--styles: {max(styles)} is none of this network's styles, 0 to {num_ws - 1}")
    writable_folder(f"--outdir={outdir}", outdir)

    def side(seeds: list[int], files: tuple[Path, ...]) -> tuple[Tensor, list[int], list[str]]:
        """ws of projections and seeds, the seeds of their noise, and their names."""
        ws, noise_seeds = joined_ws(gan, files, seeds, chosen)
        names = [f"w{index}" for index in range(len(ws) - len(seeds))]
        return ws, noise_seeds, [*names, *map(str, seeds)]

    row_ws, row_seeds, row_names = side(rows, rows_w)
    col_ws, col_seeds, col_names = side(cols, cols_w)
    mixed = mix_styles(row_ws, col_ws, coarse_styles(num_ws) if styles is None else styles)
    top = gan.uint8_of_ws(col_ws, col_seeds)
    left = gan.uint8_of_ws(row_ws, row_seeds)
    pictures = [torch.zeros_like(top[0]), *top]
    for row, seed, ws, row_image in zip(row_names, row_seeds, mixed, left, strict=True):
        images = gan.uint8_of_ws(ws, [seed] * len(col_names))
        for col, image in zip(col_names, images, strict=True):
            save_image(image, outdir / f"{row}-{col}.png")
        pictures += [row_image, *images]
    save_grid(torch.stack(pictures), outdir / "grid.png", columns=len(col_names) + 1)
    click.echo(f"{len(row_names) * len(col_names)} images in {outdir}, all in {outdir / 'grid.png'}")
