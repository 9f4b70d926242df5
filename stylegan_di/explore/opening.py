"""Opens a network file to generate pictures, and checks that it has the requested class."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.snapshots.checkpoint import as_gan, as_shown, load_snapshot
from stylegan_di.students.stylegan2 import StyleGAN2Student


def open_generator(network: str, class_index: int | None = None, which: str | None = None) -> Generator:
    """Returns the generator of a network file, or its diffusion teacher with a sampler.

    Args:
        network: a path, a URL or a known name.
        class_index: the class to generate, or None.
        which: the entry to take if the file has several networks, such as 'G'.

    Raises:
        UserError: if its images do not have 1 or 3 channels, or it has no such class.
    """
    return _checked(as_shown(load_snapshot(network, which)), network, class_index)


def open_gan(network: str, class_index: int | None = None) -> StyleGAN2Student:
    """Returns the GAN of a network file; see `open_generator`, which accepts other networks too."""
    gan = as_gan(load_snapshot(network))
    _checked(gan, network, class_index)
    return gan


def one_label(generator: Generator, class_index: int | None) -> Tensor | None:
    """Returns the label [1,label_dim] of one class, on the CPU; None for an unconditional network.

    Raises:
        UserError: if a conditional network is given no class.
    """
    if not generator.label_dim:
        return None
    if class_index is None:
        raise UserError(f"this network is conditional: give --class, from 0 to {generator.label_dim - 1}")
    return torch.eye(generator.label_dim)[class_index : class_index + 1]


def _checked(generator: Generator, network: str, class_index: int | None) -> Generator:
    if generator.img_channels not in (1, 3):
        channels = generator.img_channels
        raise UserError(f"--network={network}: its images have {channels} channels; pictures have 1 or 3")
    if class_index is not None and not generator.label_dim:
        raise UserError(f"--class={class_index}: this network is unconditional; leave it out")
    if class_index is not None and class_index >= generator.label_dim:
        raise UserError(f"--class={class_index}: this network has the classes 0 to {generator.label_dim - 1}")
    return generator
