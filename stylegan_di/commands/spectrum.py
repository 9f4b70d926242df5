"""Draws how the power spectra of generated images compare with those of real ones, over the frequency.

    stylegan-di spectrum --network=before.pkl --network=after.pkl --data=datasets/fashion-32.zip --out=spectrum.png
    stylegan-di spectrum --images=out/seeds --data=datasets/fashion-32.zip --num=10000 --out=spectrum.svg

At 1 an image set has the power of the real images; below, it is blurred; peaks are grids. It prints the ratios in the
octaves that the metric `spectrum` uses. Drawing needs stylegan-di[plot]; docs/metrics.md defines the power.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from stylegan_di.commands.options import device_option
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError, atomic_file, not_installed
from stylegan_di.explore.opening import of_pictures
from stylegan_di.metrics.features import Batches, batch_size, dataset_images, generated_images
from stylegan_di.metrics.spectrum import Spectrum, band_ratios, radial_power
from stylegan_di.snapshots.checkpoint import load_generator


def mean_powers(images: Batches, label: str, device: str) -> tuple[Tensor, Tensor]:
    """Means over the images: power at 0, 1, ... H // 2 cycles per image, and in each octave; float64 [H//2+1], [4]."""
    octaves, progress = Spectrum(), Progress(label, images.num)
    radial, bands, done = [], [], 0
    for batch in images:
        batch = batch.to(device)
        radial.append(radial_power(batch).cpu().double())
        bands.append(octaves(batch).cpu().double())
        progress.update(done := done + len(batch))
    progress.close()
    return torch.cat(radial).mean(dim=0), torch.cat(bands).mean(dim=0)


def first_images(path: str, num: int, resolution: int | None = None) -> Batches:
    """The first images of a folder or zip, at most `num`, whose side must be `resolution` where it is given."""
    dataset = ImageDataset(path)
    check_size(path, dataset.resolution, resolution or dataset.resolution)
    return dataset_images(dataset, num=min(num, len(dataset)), batch=batch_size(dataset.resolution))


def check_size(name: str, size: int, expected: int) -> None:
    if size != expected:
        raise UserError(f"{name} has images of {size}x{size}, but --data of {expected}x{expected}; sizes must agree")


def draw(ratios: Mapping[str, Tensor], path: Path) -> None:
    """Draws the ratios [H//2+1] of each name over the frequency, without that of 0 cycles, into a .png or .svg."""
    _, figure_class = load_matplotlib("spectrum")
    figure = figure_class(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="black", linewidth=0.8)
    for name, ratio in ratios.items():
        nyquist = len(ratio) - 1
        axes.plot(torch.arange(1, nyquist + 1) / nyquist, ratio[1:], label=name)
    axes.set(xscale="log", yscale="log", xlabel="frequency / Nyquist's", ylabel="power / power of real images")
    axes.legend()
    save_figure(figure, path, {"svg.hashsalt": "spectrum"})


def save_figure(figure: Any, path: Path, settings: dict[str, str]) -> None:
    """Writes a figure in the format of the path's suffix, with equal bytes for equal figures."""
    matplotlib, _ = load_matplotlib("a picture")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(settings), atomic_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)


def load_matplotlib(what: str) -> tuple[Any, Any]:
    """The package and its class Figure, for `what`."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise not_installed(what, "matplotlib", "plot") from None
    return matplotlib, Figure


@click.command(help=help_of(__doc__))
@click.option("--network", "networks", multiple=True, metavar="NAME|PATH|URL", help="Network to draw; several may be.")
@click.option("--images", "folders", multiple=True, metavar="ZIP|DIR", help="Images to draw; several may be.")
@click.option("--data", required=True, metavar="ZIP|DIR", help="Real images to compare with.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Picture to write: .png or .svg.")
@click.option("--num", type=click.IntRange(min=1), default=2000, show_default=True, help="Images of each, at most.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of latents and labels.")
@device_option
@user_errors
@torch.no_grad()
def main(
    networks: tuple[str, ...], folders: tuple[str, ...], data: str, out: Path, num: int, seed: int, device: str
) -> None:
    if not networks and not folders:
        raise UserError("give --network or --images: what is to be compared with --data")
    if out.suffix not in (".png", ".svg"):
        raise UserError(f"--out={out}: accepted are names that end in .png or .svg")
    load_matplotlib("spectrum")
    resolution = ImageDataset(data).resolution
    sources = {name: first_images(name, num, resolution) for name in folders}
    for name in networks:
        generator = of_pictures(load_generator(name), name).to(device)
        check_size(name, generator.img_resolution, resolution)
        sources[name] = generated_images(generator, num=num, batch=batch_size(resolution), seed=seed, device=device)
    reals, real_bands = mean_powers(first_images(data, num), data, device)
    ratios: dict[str, Tensor] = {}
    for name, images in sources.items():
        powers, bands = mean_powers(images, name, device)
        ratios[name] = powers / reals
        figures = "  ".join(f"{ratio:.3f}" for ratio in band_ratios(real_bands.numpy(), bands.numpy())[1:])
        click.echo(f"{name}: power in octaves from coarse to fine, over that of real images: {figures}")
    draw(ratios, out)
    click.echo(f"{out}: the ratio over the frequency")
