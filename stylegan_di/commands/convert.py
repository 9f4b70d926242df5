"""Converts a network file to another format: .pkl for NVlabs' tools, .safetensors, or .onnx.

    stylegan-di convert stylegan2-cat-config-f.pkl cat.pkl                   (a TensorFlow-era file for PyTorch)
    stylegan-di convert my-gan.pkl my-gan.safetensors
    stylegan-di convert my-gan.pkl for-stylegan3.pkl --for=stylegan3
    stylegan-di convert my-gan.pkl my-gan.onnx --trunc=0.7
    stylegan-di convert diff-instruct.pkl student.pkl --which=ema --sigma-init=2.5

The weights keep their exact bits; in ONNX they are part of a graph that gives the same images up to rounding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import torch

from stylegan_di import zoo
from stylegan_di.dnnlib.cli import Choice, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.util import UserError, atomic_write, sha256_of_file
from stylegan_di.networks import r3gan, stylegan3
from stylegan_di.networks.edm import Precond
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.snapshots.checkpoint import Snapshot, as_generator, as_model, as_shown, load_snapshot, save_snapshot
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.snapshots.onnx import to_onnx
from stylegan_di.snapshots.writing import TARGETS

STYLEGANS = (Generator, Discriminator, stylegan3.Generator)
SUFFIXES = (".pkl", ".safetensors", ".onnx")


def chosen(snapshot: Snapshot, which: str | None) -> dict[str, torch.nn.Module | None]:
    """Returns all networks, or the one of --which under the name that NVlabs' tools expect."""
    if which is None:
        return snapshot.networks
    network = snapshot.networks[which]
    if isinstance(network, Generator | stylegan3.Generator | r3gan.Generator):
        return {"G_ema": network}
    return {"ema" if isinstance(network, Precond) else which: network}


def marked(snapshot: Snapshot, sigma_init: float | None) -> dict[str, Any]:
    """Returns the other entries, with the noise level of a one-step student."""
    if sigma_init is None:
        return snapshot.extras
    if not isinstance(snapshot.networks.get("ema"), Precond):
        raise UserError(f"--sigma-init={sigma_init:g} is for a one-step student ('ema'); {snapshot.source} holds none")
    extras = snapshot.extras | {"sigma_init": sigma_init}
    as_generator(Snapshot(snapshot.source, snapshot.networks, extras, {}))
    return extras


@click.command(help=help_of(__doc__))
@click.argument("network", metavar="IN")
@click.argument("dest", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--which", metavar="ENTRY", help="Take only this network, such as G.  [default: all; ONNX: G_ema or ema]")
@click.option("--for", "target", type=Choice(TARGETS),
              help="[.pkl] Name the classes of this repository alone, with its kernels.  [default: opens in all]")
@click.option("--sigma-init", type=click.FloatRange(min=0, min_open=True),
              help="Mark 'ema' as a one-step student that starts at this noise level.")
@click.option("--trunc", type=float, help="[.onnx] Truncation psi of a GAN.  [default: 1]")
@user_errors
def main(
    network: str, dest: Path, which: str | None, target: str | None, sigma_init: float | None, trunc: float | None
) -> None:
    if dest.suffix not in SUFFIXES:
        raise UserError(f"{dest}: its name must end in {', '.join(SUFFIXES)}")
    if target is not None and dest.suffix != ".pkl":
        raise UserError(f"--for={target} is for OUT.pkl; leave it out")
    if trunc is not None and dest.suffix != ".onnx":
        raise UserError(f"--trunc={trunc:g} is for OUT.onnx; leave it out")
    if trunc is not None and not math.isfinite(trunc):
        raise UserError(f"--trunc={trunc:g}: accepted is a number such as 0.7")
    click.echo(f"{network}: {inspect_file(network, try_networks=False).sentence()}")
    snapshot = load_snapshot(network, which)
    networks, extras = chosen(snapshot, which), marked(snapshot, sigma_init)
    if target == "stylegan2-ada" and any(isinstance(part, stylegan3.Generator) for part in networks.values()):
        raise UserError(f"--for={target}: {network} holds a StyleGAN3, whose classes it has not: leave it out")
    if target is not None and not any(isinstance(part, STYLEGANS) for part in networks.values()):
        raise UserError(f"--for={target} is for StyleGANs, and {network} holds none: leave it out")
    origin = {"converted_from": network, "converted_sha256": sha256_of_file(zoo.resolve(network))}
    writable_folder(f"OUT={dest}", dest.parent)
    if dest.suffix == ".onnx":
        taken = Snapshot(network, networks, extras, snapshot.metadata)
        model = as_model(taken) if trunc is None else as_shown(taken).with_options(trunc=trunc)
        atomic_write(dest, to_onnx(model, snapshot.metadata | origin))
    else:
        metadata = snapshot.metadata | origin
        try:
            save_snapshot(dest, networks, extras=extras, metadata=metadata, target=target)
        except TypeError as error:  # the format cannot hold one of the entries beside the networks
            raise UserError(f"{network}: not all of it can be written as {dest.suffix}: {error}") from None
    click.echo(f"{dest}: {dest.stat().st_size:,} bytes, SHA-256 {sha256_of_file(dest)}")
