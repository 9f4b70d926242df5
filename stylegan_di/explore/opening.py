"""Opens a network file to generate pictures, and finds the classes and labels that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.labels import Chosen
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.snapshots.checkpoint import as_gan, as_of_w, as_shown, load_snapshot
from stylegan_di.snapshots.teacher_files import open_latents
from stylegan_di.students.refiner import RefinerStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student


def open_generator(network: str, which: str | None = None, autoencoder: str | None = None) -> Generator:
    """Returns the generator of a network file, or its diffusion teacher with a sampler.

    Args:
        network: a path, a URL or a known name.
        which: the entry to take if the file has several networks, such as 'G'.
        autoencoder: that of a teacher of latents, as --autoencoder names it.

    Raises:
        UserError: if its images do not have 1 or 3 channels, or it has no latents for the autoencoder.
    """
    shown = as_shown(load_snapshot(network, which))
    if autoencoder is not None:
        if not isinstance(shown, DiffusionSampler):
            raise UserError(
                f"--autoencoder={autoencoder}: --network={network} is a {shown.kind}, which makes no latents; leave it "
                "out"
            )
        shown.network.space = open_latents(autoencoder, shown.network)
        shown = image_sampler(shown.network)
    return of_pictures(shown, network)


def open_gan(network: str) -> StyleGAN2Student:
    """Returns the GAN of a network file; see `open_generator`, which accepts other networks too."""
    gan = as_gan(load_snapshot(network))
    of_pictures(gan, network)
    return gan


def open_of_w(network: str) -> StyleGAN2Student | RefinerStudent:
    """Returns the GAN of a network file, or its refiner; see `open_gan`."""
    student = as_of_w(load_snapshot(network))
    of_pictures(student, network)
    return student


def asked_for(generator: Generator, classes: str | None, label: Sequence[float] | None) -> list[Chosen]:
    """The classes of --class, or the label of --label; none where neither is given.

    Raises:
        UserError: the network has no such classes or labels.
    """
    if classes is not None and label is not None:
        raise UserError("--class and --label both say what to draw: give one of them")
    if (classes is not None or label is not None) and not generator.label_dim:
        option = f"--class={classes}" if label is None else "--label"
        raise UserError(f"{option}: this network is unconditional; leave it out")
    if label is not None:
        return [generator.label_law.label(label)]
    return [] if classes is None else [*generator.label_law.classes(classes)]


def one_asked_for(generator: Generator, classes: str | None, label: Sequence[float] | None) -> Chosen | None:
    """The one class or label that is asked for, None where none is.

    Raises:
        UserError: there is no such one, or they are several.
    """
    found = asked_for(generator, classes, label)
    if len(found) > 1:
        raise UserError(f"--class={classes}: {len(found)} classes; accepted is one here")
    return found[0] if found else None


def one_label(generator: Generator, chosen: Chosen | None) -> Tensor | None:
    """Returns the label [1,label_dim] of what is chosen, on the CPU; None for an unconditional network.

    Raises:
        UserError: if a conditional network is given no class.
    """
    if not generator.label_dim:
        return None
    if chosen is None:
        raise UserError(f"this network is conditional: give --class, from 0 to {generator.label_dim - 1}, or --label")
    return generator.label_law.chosen(torch.zeros(1, dtype=torch.int64), chosen)


def of_pictures(generator: Generator, network: str) -> Generator:
    """Returns the generator of a network file.

    Raises:
        UserError: if its images are neither gray nor RGB.
    """
    if generator.img_channels not in (1, 3):
        channels = generator.img_channels
        raise UserError(
            f"{network}: its images have {channels} channels, and pictures 1 or 3; a diffusion model of "
            "latents wants --autoencoder, for EDM2's networks hf:stabilityai/sd-vae-ft-mse"
        )
    return generator
