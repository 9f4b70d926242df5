"""Makes a data set, which is a zip or folder of PNGs and dataset.json, or checks a whole one.

The output has the format of NVlabs' stylegan2-ada-pytorch and edm; equal inputs give equal bytes. Labels come from
dataset.json, the IDX labels file, CIFAR-10's batches or the subfolders' names.

    stylegan-di dataset --source=fashion-mnist --transform=pad --resolution=32x32 --dest=fashion-32.zip
    stylegan-di dataset --source=cifar-10-python.tar.gz --dest=cifar10-32x32.zip
    stylegan-di dataset --source=train --channels=3 --transform=center-crop --resolution=64 --dest=imagenet.zip
    stylegan-di dataset --source=church_outdoor_train_lmdb --transform=center-crop --resolution=256 --dest=out
    stylegan-di dataset --source=cifar10-32x32.zip --check
"""

from __future__ import annotations

from pathlib import Path

import click
from PIL import ImageColor

from stylegan_di.data.check import check_dataset, describe_labels, notes_on_labels
from stylegan_di.data.convert import TRANSFORMS, convert
from stylegan_di.data.idx import IDX_IMAGES, MNIST, PADDED_MNIST, SPLITS
from stylegan_di.data.sources import open_source
from stylegan_di.dnnlib.cli import Choice, GroupedCommand, help_of, user_errors
from stylegan_di.dnnlib.progress import PassProgress, Progress, counted
from stylegan_di.dnnlib.terminal import one_line
from stylegan_di.dnnlib.util import UserError

#: Options of stylegan2-ada-pytorch's dataset_tool.py that are not here (docs/migration.md).
NVLABS = dict.fromkeys(["--width", "--height"], "give --resolution=WxH, such as 32x32")
OTHER_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def parse_resolution(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Parses '32x32' or '32' as (width, height)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 8192 for part in parts):
        raise click.BadParameter(f"{value!r} is not a size in pixels such as 32x32 or 32.")
    return int(parts[0]), int(parts[-1])


def parse_colour(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    """Parses 'white' or '#ff8000' as (r, g, b)."""
    if value is None:
        return None
    try:
        return ImageColor.getrgb(value)[:3]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a colour such as white, black or #ff8000.") from None


def check(source: Path) -> None:
    """Prints everything wrong with a data set, one line each; exits with status 2 if there is anything."""
    progress = PassProgress()
    findings = check_dataset(source, lambda done, total: progress("Images", done, total))
    for line in findings.complaints:
        click.echo(one_line(line))
    for note in findings.notes:
        click.echo(one_line(note), err=True)
    kind = f", {findings.kind}" if findings.kind else ""
    problems = counted(len(findings.complaints), "problem") if findings.complaints else "nothing wrong"
    click.echo(one_line(f"{source}: {counted(findings.images, 'image')}{kind}, {findings.labels}, {problems}"))
    if findings.complaints:
        raise click.exceptions.Exit(2)


@click.command(cls=GroupedCommand, elsewhere=NVLABS, help=help_of(__doc__))
@click.option("--source", type=click.Path(path_type=Path), required=True,
              help="Folder or zip of images, IDX file or a folder of them, CIFAR-10's tar, LSUN's LMDB folder")
@click.option("--dest", type=click.Path(path_type=Path), help="A .zip file or a new folder")
@click.option("--check", "only_check", is_flag=True,
              help="Read a whole data set and list everything wrong with it; exit status 2 if there is anything")
@click.option("--resolution", "size", callback=parse_resolution, metavar="WxH",
              help="Size of the images: 32x32 or 32; 24x16 for a denoiser")
@click.option("--transform", type=Choice(TRANSFORMS),
              help="center-crop: resize the largest crop of that shape; center-crop-wide: the same on a black square "
              "of that width; center-crop-dhariwal: resize the shorter side, then crop; pad: add black borders and "
              "keep the pixels, as MNIST's images get without --resolution; letterbox: as large as fits, with black "
              "borders; without this option the whole image is resized")
@click.option("--alpha", "background", callback=parse_colour, metavar="COLOUR",
              help="Put transparent images on this colour: white, #ff8000, ...  [default: refuse them]")
@click.option("--white", type=click.IntRange(min=1, max=65535), metavar="VALUE",
              help="Take 16-bit gray images; this value becomes white: 65535, or 4095 for 12 bits")
@click.option("--split", type=Choice(list(SPLITS)), help="Split of IDX files and CIFAR-10.  [default: train]")
@click.option("--max-images", type=click.IntRange(min=1), help="Take only the first images")
@click.option("--channels", type=Choice(["1", "3"]), help="Convert to gray (1) or RGB (3)")
@click.option("--labels/--no-labels", default=None, help="Require labels / leave them out.  [default: if any]")
@user_errors
def main(
    source: Path,
    dest: Path | None,
    only_check: bool,
    size: tuple[int, int] | None,
    transform: str | None,
    background: tuple[int, int, int] | None,
    white: int | None,
    split: str | None,
    max_images: int | None,
    channels: str | None,
    labels: bool | None,
) -> None:
    if only_check:
        others = (dest, size, transform, background, white, split, max_images, channels, labels)
        if any(value is not None for value in others):
            raise UserError("--check reads the data set --source unchanged; leave the other options out.")
        return check(source)
    if dest is None:
        raise UserError("--dest=ZIP|DIR is missing; give the data set to write, or --check to read one.")
    if transform is not None and size is None:
        raise UserError(f"--transform={transform} needs --resolution, such as --resolution=32x32.")
    if transform == "center-crop-dhariwal" and size is not None and size[0] != size[1]:
        raise UserError(f"--transform={transform} makes squares; --resolution={size[0]}x{size[1]} is not square.")
    if dest.suffix.lower() in OTHER_ARCHIVES:
        raise UserError(f"--dest={dest}: data sets are written as .zip or as a folder, such as {dest.stem}.zip.")
    if source.resolve() == dest.resolve():
        raise UserError(f"--dest={dest} is the source itself; give another name.")
    images = open_source(source, split=split or "train", labels=labels)
    images = images.first(max_images or len(images.where))
    if size is None and IDX_IMAGES in images.where[0] and images.load(0).size == MNIST:
        transform, size = "pad", PADDED_MNIST
    count = len(images.where)
    progress = Progress("images", count)
    kind = convert(
        images,
        dest,
        transform=transform,
        size=size,
        channels=None if channels is None else int(channels),
        background=background,
        white=white,
        progress=progress.update,
    )
    progress.close()
    for note in (*images.notes, *(notes_on_labels(images.labels) if images.labels is not None else ())):
        click.echo(one_line(note), err=True)
    described = describe_labels(images.labels) if images.labels is not None else "no labels"
    click.echo(one_line(f"{dest}: {counted(count, 'image')}, {kind}, {described}"))
