"""Starts a GAN training from another GAN's generator, discriminator and average (--kind=gan --resume)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from stylegan_di import interfaces, zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError, say
from stylegan_di.networks import r3gan, stylegan2, stylegan3
from stylegan_di.networks.stylegan2 import Discriminator
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.torch_utils.persistence import PersistentModule

Generator = stylegan2.Generator | stylegan3.Generator
Network = TypeVar("Network", bound=PersistentModule)


@dataclass(frozen=True)
class GAN:
    """The networks of a StyleGAN training."""

    generator: Generator
    discriminator: Discriminator
    ema: Generator


def freeze(model: interfaces.Generator, ema: interfaces.Generator, parts: Sequence[str]) -> None:
    """Freezes parts of a generator with the weights of its average, so that the average keeps them too.

    Raises:
        UserError: if there is no such part, or no part would be left to train.
    """
    if not parts:
        return
    model.freeze(parts)
    ema.freeze(parts)
    for module, average in zip(model.frozen_modules(), ema.frozen_modules(), strict=True):
        module.load_state_dict(average.state_dict())


def gan_to_resume(source: str, dataset: ImageDataset, freezed: int = 0) -> GAN:
    """Opens the networks of a GAN's pickle for a data set.

    If the file has another resolution or number of classes, the layers that depend on it are newly initialised, and a
    line says how much of the generator that is.

    Args:
        source: a file, URL or known name, or a key of zoo.TRANSFER_SOURCES.
        freezed: number of discriminator layers to freeze (Mo et al. 2020, arXiv 2002.10964).

    Raises:
        UserError: if the file holds no StyleGAN with its discriminator, or is for other images.
    """
    networks = load_snapshot(zoo.TRANSFER_SOURCES.get(source, source)).networks
    generator, discriminator = networks.get("G"), networks.get("D")
    ema = networks.get("G_ema") or generator
    if isinstance(generator, r3gan.Generator):
        raise UserError(f"--resume={source}: its networks are R3GAN's; give --cfg=r3gan")
    if not (
        isinstance(generator, Generator) and isinstance(discriminator, Discriminator) and isinstance(ema, Generator)
    ):
        raise UserError(
            f"--resume={source}: training needs a generator and a discriminator, but the file's entries are "
            f"{', '.join(networks) or 'none'}; pass a .pkl that --kind=gan or stylegan2-ada wrote"
        )
    if generator.img_channels != dataset.num_channels:
        raise UserError(
            f"--resume={source}: its images have {generator.img_channels} channels, those of --data "
            f"{dataset.num_channels}; stylegan-di dataset --channels makes data of another number"
        )
    blocks = _arguments(discriminator).arguments.get("block_kwargs") or {}
    blocks = {name: value for name, value in blocks.items() if name != "freeze_layers"}
    if freezed:
        blocks["freeze_layers"] = freezed
    images = dict(c_dim=dataset.label_dim, img_resolution=dataset.resolution)
    gan = GAN(
        _rebuilt(generator, **images), _rebuilt(discriminator, **images, block_kwargs=blocks), _rebuilt(ema, **images)
    )
    taken, all_weights = len(_fitting(gan.generator, generator)), len(gan.generator.state_dict())
    if taken < all_weights:
        say(
            f"--resume={source}: made for {generator.img_resolution} pixels and {generator.c_dim} classes; "
            f"{taken} of the generator's {all_weights} weights are taken from it, the others begin anew"
        )
    return gan


def _arguments(network: PersistentModule) -> inspect.BoundArguments:
    return inspect.signature(type(network)).bind(*network._init_args, **network.init_kwargs)


def _rebuilt(network: Network, **changes: Any) -> Network:
    """Returns the network if it was built with these arguments, else a new one with all weights that fit."""
    arguments = _arguments(network)
    if arguments.arguments | changes == arguments.arguments:
        return network
    arguments.arguments.update(changes)
    other = type(network)(*arguments.args, **arguments.kwargs)
    other.load_state_dict(other.state_dict() | _fitting(other, network))
    return other


def _fitting(network: PersistentModule, source: PersistentModule) -> dict[str, Tensor]:
    """Returns the weights of source that have the names and shapes of network's."""
    own, weights = network.state_dict(), source.state_dict()
    return {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
