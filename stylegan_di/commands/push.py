"""Sends a network to the Hugging Face hub: weights as safetensors, a model card, a picture.

    stylegan-di push runs/00000-fashion-gan-di-ikl-batch32 owner/name
    stylegan-di push network.pkl owner/name --licence=cc-by-nc-4.0 --private
    stylegan-di push network.pkl owner/name --dest=out/card

NETWORK is a network file, or a run's folder, whose network-best (or newest snapshot) is sent. REPO is made if it is
not there. Log in before with `hf auth login`. Paths of this machine are shortened to file names in what is sent.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click
from PIL import Image

from stylegan_di import hub, zoo
from stylegan_di.dnnlib.cli import help_of, user_errors, writable_folder
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import open_picture, save_grid, to_uint8
from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots import card as cards
from stylegan_di.snapshots.checkpoint import Snapshot, as_model, load_snapshot, save_snapshot

SAMPLES, COLUMNS = 32, 8  # of the picture of a network that no run's folder has one of
WIDTH, LARGEST = 640, 2560  # pixels: pictures are at least so wide, but no side is longer than that
README, SAMPLES_PICTURE = "README.md", "samples.png"


@click.command(help=help_of(__doc__))
@click.argument("network", metavar="NETWORK")
@click.argument("repo", metavar="REPO")
@click.option("--licence", help="Identifier of the hub. [default: from those of GAN, teacher and images, if known]")
@click.option("--private", is_flag=True, help="Make the repository private, if it is not there.")
@click.option("--dest", help="Write what would be sent into this folder, and send nothing.")
@user_errors
def main(network: str, repo: str, licence: str | None, private: bool, dest: str | None) -> None:
    if hub.parse(hub.HUB + repo).repo != repo:
        raise UserError(f"{repo}: accepted is owner/name")
    if licence is not None and not re.fullmatch(r"[\w.-]+", licence):
        raise UserError(f"--licence={licence[:80]!r}: accepted is an identifier of the hub, such as mit or other")
    source, run = chosen(network)
    snapshot = load_snapshot(source)
    if zoo.terms_of(source):  # a published file says nothing of itself
        snapshot.metadata |= {"converted_from": source}
    licence = licence or cards.licence_of(snapshot.metadata)
    if dest is not None:
        folder = writable_folder(f"--dest={dest}", Path(dest))
        write(folder, snapshot, repo, licence, run)
        click.echo(f"written: {folder}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), snapshot, repo, licence, run)
        url = hub.push(Path(temporary), repo, private=private, message=f"{Path(source).name}, by stylegan-di")
    click.echo(f"sent: {url}; use it as {hub.HUB}{repo}")


def chosen(network: str) -> tuple[str, Path | None]:
    """The network file that is meant, and the folder of its run, None where it is in none.

    Raises:
        UserError: if a folder holds none.
    """
    path = Path(network)
    if not path.is_dir():
        return network, path.parent if (path.parent / "training_options.json").is_file() else None
    found = [*sorted(path.glob("network-best.*")), *sorted(path.glob("network-snapshot-*"), reverse=True)]
    if not found:
        raise UserError(f"{network}: the folder holds no network-best or network-snapshot; pass a network file")
    return str(found[0]), path


def fitted(path: Path) -> Image.Image:
    """A picture, small ones enlarged by a whole factor, so that pixels can be seen, and large ones made smaller."""
    picture = open_picture(path)
    factor = max(min(-(-WIDTH // picture.width), LARGEST // max(picture.size)), 1)
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((LARGEST, LARGEST))
    return picture


def write(folder: Path, snapshot: Snapshot, repo: str, licence: str, run: Path | None) -> None:
    """Writes the files of a repository: the network, its card and a picture."""
    before, picture = {}, ""
    if run is not None:
        before = cards.metrics_before(run)
        if (run / cards.PICTURE).is_file():
            picture = cards.PICTURE
            fitted(run / picture).save(folder / picture)
    model = as_model(snapshot)
    if not picture and not isinstance(model, Denoiser) and model.img_channels in (1, 3):
        picture = SAMPLES_PICTURE
        save_grid(to_uint8(model.draw(list(range(SAMPLES)))), folder / picture, COLUMNS)
        fitted(folder / picture).save(folder / picture)
    text = cards.card(repo, snapshot, licence, before, picture)
    (folder / README).write_text(text, encoding="utf-8")
    told = cards.published(snapshot.metadata)
    try:
        save_snapshot(folder / hub.NETWORK, snapshot.networks, extras=snapshot.extras, metadata=told)
    except TypeError as error:
        raise UserError(f"{snapshot.source}: not all of it can be written as .safetensors: {error}") from None
