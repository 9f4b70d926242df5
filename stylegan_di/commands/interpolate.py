"""Makes a looping video of a walk through a GAN's latents: .gif, or .mp4 with the package av.

    stylegan-di interpolate --network=fashion-gan.pkl --class=8 --seeds=0-11 --grid=3x2 --output=loop.gif
    stylegan-di interpolate --network=ffhq.pkl --seeds=0-31 --grid=4x2 --frames=480 --fps=60 --output=loop.mp4
    stylegan-di interpolate --network=ffhq.pkl --projected-w=me/projected_w.npz --seeds=3-5 --output=loop.gif

The grid's cells take consecutive seeds: with 12 seeds, each cell of a 3x2 grid shows two keyframes. Projections
(stylegan-di project) are keyframes before the seeds; their noise maps are not used, as they belong to one image. With
--noise-mode=random, all frames of a cell have the noise of its first seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from torch import Tensor

from stylegan_di.commands.options import class_options, device_option, given, noise_mode_option, truncation_options
from stylegan_di.dnnlib.cli import Seeds, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.progress import Progress
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.latents import loop
from stylegan_di.explore.opening import one_asked_for, open_gan
from stylegan_di.explore.projection import joined_ws
from stylegan_di.explore.video import check_video, save_video
from stylegan_di.images import tile

FRAMES = 60  # from one keyframe to the next


def parse_grid(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Parses '4x2' as (4, 2), columns and rows."""
    match = re.fullmatch(r"([1-9][0-9]?)x([1-9][0-9]?)", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a grid of columns and rows such as 4x2, of 99x99 at most.")
    return int(match[1]), int(match[2])


@click.command(help=help_of(__doc__))
@click.option("--network", required=True, metavar="NAME|PATH|URL", help="Network file of a GAN, or a known name.")
@click.option("--seeds", type=Seeds(), metavar="LIST", help="Keyframes: two or more for each cell.")
@click.option("--projected-w", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Keyframes before those of --seeds: a result of stylegan-di project; may be given more than once.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.gif|FILE.mp4")
@click.option("--grid", callback=parse_grid, default="1x1", show_default=True, metavar="WxH", help="Images in a frame.")
@click.option("--frames", type=click.IntRange(min=2), help=f"Frames in the loop.  [default: {FRAMES} per keyframe]")
@click.option("--fps", type=click.IntRange(min=1, max=240), default=25, show_default=True, help="Frames per second.")
@truncation_options
@noise_mode_option
@class_options()
@device_option
@user_errors
def main(
    network: str,
    seeds: list[int] | None,
    projected_w: tuple[Path, ...],
    output: Path,
    grid: tuple[int, int],
    frames: int | None,
    fps: int,
    classes: str | None,
    label: tuple[float, ...] | None,
    device: str,
    **options: float | str | None,
) -> None:
    cells = grid[0] * grid[1]
    seeds = seeds or []
    found = len(seeds) + len(projected_w)
    keyframes = found // cells
    if found % cells or keyframes < 2:
        kinds = "seeds and projections" if projected_w else "seeds"
        raise UserError(f"--seeds: {found} {kinds}; a grid of {cells} takes {2 * cells}, {3 * cells} or more so")
    check_video("--output", output, fps)
    gan = open_gan(network).with_options(**given(**options)).to(device)
    chosen = one_asked_for(gan, classes, label)
    writable_folder(f"--output={output}", output.parent)

    ws, noise_seeds = joined_ws(gan, projected_w, seeds, chosen)
    if len(ws) != found:
        raise UserError(f"--projected-w: {len(ws) - len(seeds)} w in {len(projected_w)} files; accepted is one in each")
    path = loop(ws.unflatten(0, (cells, keyframes)).transpose(0, 1), frames or FRAMES * keyframes)
    progress = Progress("Frames", len(path))

    def pictures() -> Iterator[Tensor]:
        for done, cell_ws in enumerate(path, start=1):
            images = gan.uint8_of_ws(cell_ws.to(ws.device), noise_seeds[::keyframes])
            yield tile(images, columns=grid[0])
            progress.update(done)

    save_video(pictures(), output, fps)
    progress.close()
    click.echo(f"{output}: {len(path)} frames, a loop of {len(path) / fps:.2f} s")
