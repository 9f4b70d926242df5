"""Projects an image into the w of a GAN: finds the latent and the noise that come closest to it.

    stylegan-di project --network=ffhq.pkl --target=photo.png --outdir=out
    stylegan-di project --network=fashion-gan.pkl --class=8 --target=bag.png --num-steps=300

Writes target.png (cropped and resized), proj.png, projected_w.npz (w [1,num_ws,w_dim] and the noise maps) and
proj.gif or proj.mp4, a video of the optimisation. The distance is LPIPS if its two weight files are in the cache or
given by --detector-file, otherwise the distance of the pixels at every scale, which needs no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.commands.options import class_options, device_option
from stylegan_di.data.convert import load_picture
from stylegan_di.data.files import ImageFiles
from stylegan_di.dnnlib.cli import Choice, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.opening import one_asked_for, one_label, open_of_w
from stylegan_di.explore.projection import (
    Features,
    OfW,
    Projection,
    multi_scale,
    perceptual,
    project,
    projected_images,
    save_projection,
)
from stylegan_di.explore.video import check_video, save_video
from stylegan_di.images import save_image
from stylegan_di.metrics.extractors import detector_files
from stylegan_di.metrics.vgg16 import LPIPS_WEIGHTS, VGG_WEIGHTS, load_lpips, load_vgg16

FPS = 10
MAX_FRAMES = 100  # frames of the video, spread evenly over the steps


def way_there(projection: Projection, network: OfW, target: Tensor) -> Iterator[Tensor]:
    """Yields frames of target and projection side by side."""
    steps = np.linspace(0, len(projection.path) - 1, min(len(projection.path), MAX_FRAMES)).round().astype(int)
    for step in steps.tolist():
        (image,) = projected_images(network, projection, [step])
        yield torch.cat([target.cpu(), image], dim=2)


def open_features(detector_file: str | None, device: str) -> tuple[Features, str]:
    """Returns the features whose distance is minimised, and the distance's name."""
    files = detector_files(detector_file, ["vgg16", "lpips"])
    if not files and not (zoo.is_local(VGG_WEIGHTS) and zoo.is_local(LPIPS_WEIGHTS)):
        return multi_scale, "pixels at every scale (no perceptual weights)"
    lpips = load_lpips(load_vgg16(files.get("vgg16")), files.get("lpips"))
    return perceptual(lpips.to(device)), "LPIPS"


@click.command(help=help_of(__doc__))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="A GAN or refiner: a file or known name.")
@click.option("--target", required=True, type=click.Path(path_type=Path), metavar="FILE|DIR",
              help="Image to project, or a folder of them: each gets a folder of its own in --outdir.")
@click.option("--num-steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Optimisation steps.")
@click.option("--seed", type=click.IntRange(min=0), default=303, show_default=True, help="Seed of latents and noise.")
@click.option("--save-video", "with_video", type=bool, default=True, show_default=True, help="Write the video?")
@click.option("--video-format", type=Choice(["gif", "mp4"]), default="gif", show_default=True,
              help="proj.gif, or proj.mp4 with the package av.")
@class_options(needed=True)
@click.option("--detector-file", metavar="vgg16=FILE,lpips=FILE",
              help="Weights of LPIPS.  [default: those in the cache]")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), default="out", show_default=True)
@device_option
@user_errors
def main(
    network: str,
    target: Path,
    num_steps: int,
    seed: int,
    with_video: bool,
    video_format: str,
    classes: str | None,
    label: tuple[float, ...] | None,
    detector_file: str | None,
    outdir: Path,
    device: str,
) -> None:
    if with_video:
        check_video("--video-format", outdir / f"proj.{video_format}", FPS)
    student = open_of_w(network).to(device)
    told = one_label(student, one_asked_for(student, classes, label))
    labels = None if told is None else told.to(device)
    folders = {target: outdir}
    if target.is_dir():
        names = ImageFiles(target).image_names
        if not names:
            raise UserError(f"--target={target}: the folder holds no images")
        folders = {target / name: outdir / Path(name).with_suffix("") for name in names}
        if len(set(folders.values())) < len(folders):
            raise UserError(f"--target={target}: names in it differ by their suffix only; rename one of them")
    features, distance = open_features(detector_file, device)
    click.echo(f"distance: {distance}")
    for file, folder in folders.items():
        pixels = torch.from_numpy(load_picture(file, student.img_resolution, student.img_channels)).to(device)
        writable_folder(f"--outdir={outdir}", folder)
        video = folder / f"proj.{video_format}" if with_video else None
        project_one(student.of_w(labels), pixels, labels, features, num_steps, seed, folder, video)


def project_one(
    network: OfW,
    pixels: Tensor,
    labels: Tensor | None,
    features: Features,
    num_steps: int,
    seed: int,
    outdir: Path,
    video: Path | None,
) -> None:
    """Projects a target, uint8 [C,R,R], and writes what comes of it."""
    progress = Progress("Steps", num_steps)
    projection = project(
        network, pixels, labels=labels, features=features, num_steps=num_steps, seed=seed,
        report=lambda done, distance: progress.update(done, f"distance {distance:.4g}"),
    )  # fmt: skip
    progress.close()
    save_image(pixels, outdir / "target.png")
    save_image(projected_images(network, projection, [num_steps - 1])[0], outdir / "proj.png")
    save_projection(projection, network, outdir / "projected_w.npz")
    if video is not None:
        save_video(way_there(projection, network, pixels), video, FPS)
    click.echo(f"{outdir}: distance {projection.start:.4g} at the mean image, {projection.end:.4g} at the projection")
