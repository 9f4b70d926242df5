"""Makes reference statistics (.npz) of a data set, for --ref of training and metrics.

    stylegan-di reference --data=datasets/fashion-32-test.zip --dest=stylegan_di/assets/fashion-reference.npz

A file holds EDM's mu and sigma (over N - 1), num, extractor (whose name is checked when the file is read), the features
and, if the data set has classes, how many images each has, and labels, which cr_fashion needs. This command, on images
of 16x16, made the shipped file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import numpy as np

from stylegan_di.commands.options import device_option
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import Choice, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.extractors import EXTRACTORS, open_extractor
from stylegan_di.metrics.features import dataset_images, extract
from stylegan_di.metrics.statistics import save_stats


def classes_of(data: str) -> np.ndarray | None:
    """Returns the class of each image, int64 [N]; None for a data set without classes."""
    try:
        dataset = ImageDataset(data, use_labels=True)
        return dataset_images(dataset, num=len(dataset), batch=64).labels()
    except UserError:
        return None


@click.command(help=help_of(__doc__))
@click.option("--data", required=True, metavar="ZIP|DIR", help="The data set.")
@click.option("--dest", required=True, metavar="FILE.npz", help="File to write.")
@click.option("--extractor", type=Choice(list(EXTRACTORS)),
              help="Network whose features are taken; the file names it.  [default: inception, whose statistics EDM's "
              "code reads too; fashion if the name of --data has 'fashion' in it]")
@click.option("--detector-file", metavar="FILE", help="The extractor's weights.  [default: published or shipped ones]")
@click.option("--features", type=Choice(["none", "float16", "float32"]), default="float16", show_default=True,
              help="Type in which to store the features themselves, which precision and recall need.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@device_option
@user_errors
def main(
    data: str,
    dest: str,
    extractor: str | None,
    detector_file: str | None,
    features: str,
    batch: int,
    device: str,
) -> None:
    if Path(dest).suffix != ".npz":
        raise UserError(f"--dest={dest}: its name must end in .npz")
    writable_folder(f"--dest={dest}", Path(dest).parent)
    extractor = extractor or ("fashion" if "fashion" in Path(data).name.lower() else "inception")
    network = open_extractor(extractor, detector_file).to(device)
    dataset = ImageDataset(data)
    progress = Progress("Images", len(dataset))
    images = dataset_images(dataset, num=len(dataset), batch=batch)
    keep = [] if features == "none" else [extractor]
    stats = extract(images, [network], keep=keep, device=device, report=progress.update)[extractor]
    progress.close()
    classes = classes_of(data)
    if stats.features is not None:
        stats = dataclasses.replace(stats, features=stats.features.astype(features), labels=classes)
    save_stats(dest, stats, {} if classes is None else {"label_counts": np.bincount(classes)})
    click.echo(f"{dest}: {extractor} features of {len(dataset)} images, {Path(dest).stat().st_size / 1e6:.2f} MB")
