"""Measures how far a refined GAN has moved from the original, at the same latents.

    stylegan-di compare cifar10.pkl runs/00000-.../network-best.pkl --extractor=inception

Writes compare.png (the images of OLD above those of NEW, row by row) and compare.json to --outdir, and prints the mean
distances in pixels ([-1,1]) and in features, and a table of both and of each GAN's spread over a range of truncations.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import torch

from stylegan_di.commands.options import device_option
from stylegan_di.dnnlib.cli import Choice, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.explore.comparison import Comparison, check_comparable, compare
from stylegan_di.explore.opening import of_pictures
from stylegan_di.images import save_grid, to_uint8
from stylegan_di.metrics.extractors import EXTRACTORS, open_extractor
from stylegan_di.snapshots.checkpoint import load_generator

PSI = "0,0.25,0.5,0.75,1"


def parse_psis(text: str) -> list[float]:
    """Parses '0,0.5,1' as [0, 0.5, 1], and 'none' as []."""
    if text == "none":
        return []
    try:
        psis = [float(part) for part in text.split(",")]
    except ValueError:
        psis = [float("nan")]
    if not all(-2 <= psi <= 2 for psi in psis):
        raise UserError(f"--psi={text}: accepted are numbers from -2 to 2 such as {PSI}, or none")
    return psis


def table(found: Comparison) -> str:
    lines = [f"pixels {found.plain.pixel_distance:.4f}, features {found.plain.feature_distance:.4f} (mean distances)"]
    if found.truncation:
        lines.append(f"{'psi':>6} {'pixels':>8} {'features':>9} {'spread old':>11} {'spread new':>11}")
    for p in found.truncation:
        row = f"{p.psi:>6g} {p.pixel_distance:>8.4f} {p.feature_distance:>9.4f} {p.spread_old:>11.4f}"
        lines.append(f"{row} {p.spread_new:>11.4f}")
    return "\n".join(lines)


@click.command(help=help_of(__doc__))
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--num", type=click.IntRange(min=1, max=100_000), default=256, show_default=True, help="Latents.")
@click.option("--columns", type=click.IntRange(min=1), default=16, show_default=True, help="Images per row.")
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Rows of each in the picture.")
@click.option("--psi", default=PSI, show_default=True, metavar="LIST", help="Truncations of the curves, or none.")
@click.option("--extractor", type=Choice(list(EXTRACTORS)), default="fashion", show_default=True,
              help="Network whose features to compare; fashion is a small Fashion-MNIST classifier.")
@click.option("--detector-file", metavar="FILE", help="The extractor's weights.  [default: published or shipped ones]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True,
              help="Folder for compare.png and compare.json.")
@device_option
@user_errors
def main(
    old: str,
    new: str,
    num: int,
    columns: int,
    rows: int,
    psi: str,
    extractor: str,
    detector_file: str | None,
    seed: int,
    outdir: Path,
    device: str,
) -> None:
    psis = parse_psis(psi)
    first, second = (of_pictures(load_generator(name), name).to(device) for name in (old, new))
    check_comparable(first, second)
    network = open_extractor(extractor, detector_file).to(device)
    writable_folder(f"--outdir={outdir}", outdir)
    found = compare(first, second, network, num=num, seed=seed, psis=psis)
    columns = min(columns, num)
    shown = min(rows, num // columns)
    pairs = list(zip(found.old.split(columns), found.new.split(columns), strict=True))[:shown]  # a row of OLD, of NEW
    images = torch.cat([torch.cat(pair) for pair in pairs])
    save_grid(to_uint8(images), outdir / "compare.png", columns=columns)
    report = {
        "old": old, "new": new, "num": num, "seed": seed, "extractor": extractor,
        "pixel_distance": found.plain.pixel_distance, "feature_distance": found.plain.feature_distance,
        "truncation": [asdict(point) for point in found.truncation],
    }  # fmt: skip
    atomic_write(outdir / "compare.json", (json.dumps(report, indent=2) + "\n").encode())
    click.echo(table(found))
    click.echo(f"{outdir / 'compare.png'}: OLD above NEW, row by row; {outdir / 'compare.json'}")
