"""Mixes styles: shows every row's image with some styles of every column's image.

    stylegan-di style-mix --network=ffhq.pkl --rows=85,100,75 --cols=55,821,1789 --styles=0-6 --outdir=out

Writes <row>-<column>.png and grid.png, whose first row and column show the unmixed images.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from stylegan_di.dnnlib.cli import Device, Seeds, default_device, user_errors, writable_folder
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.latents import coarse_styles, mix_styles
from stylegan_di.explore.opening import open_gan
from stylegan_di.images import save_grid, save_image


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="Network file of a GAN, or a known name.")
@click.option("--rows", type=Seeds(), required=True, metavar="LIST", help="Seeds of the rows, such as 85,100-103.")
@click.option("--cols", type=Seeds(), required=True, metavar="LIST", help="Seeds of the columns.")
@click.option("--styles", type=Seeds(), metavar="LIST",
              help="Styles to take from the column, from 0 (coarse).  [default: 0-6 of 18, in proportion]")
@click.option("--trunc", type=float, default=1, show_default=True, help="Truncation psi.")
@click.option("--noise-mode", type=click.Choice(["const", "random", "none"]),
              help="[StyleGAN2] Noise inputs; random: drawn from the row's seed.  [default: const]")
@click.option("--class", "class_index", type=click.IntRange(min=0), metavar="N",
              help="Class of a conditional network.  [default: drawn from each seed]")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True)
@click.option("--device", type=Device(), help="cuda, cuda:N, cpu or mps.  [default: cuda when there]")
@user_errors
def main(
    network: str,
    rows: list[int],
    cols: list[int],
    styles: list[int] | None,
    trunc: float,
    noise_mode: str | None,
    class_index: int | None,
    outdir: Path,
    device: str | None,
) -> None:
    noise = {} if noise_mode is None else {"noise_mode": noise_mode}
    gan = open_gan(network, class_index).with_options(trunc=trunc, **noise)
    gan.to(device or default_device())
    num_ws = gan.network.num_ws
    if styles is not None and max(styles) >= num_ws:
        raise UserError(f"--styles: {max(styles)} is none of this network's styles, 0 to {num_ws - 1}")
    writable_folder(f"--outdir={outdir}", outdir)

    ws = {
        name: gan.mapped(seeds, class_index=class_index)
        for name, seeds in (("rows", rows), ("cols", cols))
    }
    mixed = mix_styles(ws["rows"], ws["cols"], coarse_styles(num_ws) if styles is None else styles)
    top = gan.uint8_of_ws(ws["cols"], cols)
    left = gan.uint8_of_ws(ws["rows"], rows)
    pictures = [torch.zeros_like(top[0]), *top]
    for row, row_ws, row_image in zip(rows, mixed, left, strict=True):
        images = gan.uint8_of_ws(row_ws, [row] * len(cols))
        for col, image in zip(cols, images, strict=True):
            save_image(image, outdir / f"{row}-{col}.png")
        pictures += [row_image, *images]
    save_grid(torch.stack(pictures), outdir / "grid.png", columns=len(cols) + 1)
    click.echo(f"{len(rows) * len(cols)} images in {outdir}, all in {outdir / 'grid.png'}")


if __name__ == "__main__":
    main()
