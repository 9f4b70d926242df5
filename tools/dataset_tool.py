"""Make a data set: MNIST-like IDX files, a folder or a zip of images -> a zip or folder of PNGs and dataset.json.

The output is the format of NVlabs' stylegan2-ada-pytorch and edm; equal inputs give equal bytes. Labels come from
dataset.json, the IDX labels file, or the subfolders' names. Example:

    python tools/dataset_tool.py --source=fashion-mnist --transform=pad --resolution=32x32 --dest=fashion-32.zip
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from dnnlib.cli import user_errors
from dnnlib.progress import Progress
from dnnlib.util import UserError
from stylegan_di.data.convert import TRANSFORMS, convert, open_source
from stylegan_di.data.idx import SPLITS


def parse_resolution(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """'32x32' or '32' -> (width, height)."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 8192 for part in parts):
        raise click.BadParameter(f"{value!r} is not a size in pixels such as 32x32 or 32.")
    return int(parts[0]), int(parts[-1])


@click.command(help=__doc__)
@click.option("--source", type=click.Path(path_type=Path), required=True, help="Folder, zip, or IDX images file")
@click.option("--dest", type=click.Path(path_type=Path), required=True, help="A .zip file or a new folder")
@click.option("--resolution", "size", callback=parse_resolution, metavar="WxH", help="Size of the images: 32x32 or 32")
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="center-crop: the largest crop of that shape, resized; center-crop-wide: the same on a black square of the "
    "width; pad: black borders, pixels unchanged; without the option the whole image is resized",
)
@click.option("--split", type=click.Choice(list(SPLITS)), default="train", show_default=True, help="Of IDX files")
@click.option("--max-images", type=click.IntRange(min=1), help="Take the first images only")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Convert to gray (1) or RGB (3)")
@click.option("--labels/--no-labels", default=None, help="Insist on labels / leave them out; without: if there are any")
@user_errors
def main(
    source: Path,
    dest: Path,
    size: tuple[int, int] | None,
    transform: str | None,
    split: str,
    max_images: int | None,
    channels: str | None,
    labels: bool | None,
) -> None:
    """Convert a data set."""
    if transform is not None and size is None:
        raise UserError(f"--transform={transform} needs --resolution, such as --resolution=32x32.")
    if source.resolve() == dest.resolve():
        raise UserError(f"--dest={dest} is the source itself; give another name.")
    images = open_source(source, split=split, labels=labels)
    images = images.first(max_images or len(images.where))
    count = len(images.where)
    progress = Progress("images", count)
    kind = convert(
        images,
        dest,
        transform=transform,
        size=size,
        channels=None if channels is None else int(channels),
        progress=progress.update,
    )
    progress.close()
    classes = len({label for label in images.labels or [] if isinstance(label, int)})
    click.echo(f"{dest}: {count} images, {kind}, {f'{classes} classes' if classes else 'no class labels'}")


if __name__ == "__main__":
    main()
