"""Starts a GAN training from another GAN's generator, discriminator and average (--kind=gan --resume).

The data may have other classes, and for StyleGAN2 another resolution or other colours: what depends on these is new.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stylegan_di import interfaces, zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks import r3gan, stylegan2, stylegan3
from stylegan_di.networks.stylegan2 import Discriminator
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.torch_utils.persistence import PersistentModule

Generator = stylegan2.Generator | stylegan3.Generator
Network = TypeVar("Network", bound=PersistentModule)


@dataclass(frozen=True)
class GAN:
    """The networks of a StyleGAN training; `notes` say what of them is new, though they come from a file."""

    generator: Generator
    discriminator: Discriminator
    ema: Generator
    notes: tuple[str, ...] = ()


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

    If the file has a different number of classes, the layers that depend on it are newly initialised. The blocks of a
    StyleGAN2 for the resolutions that both have are taken over, and the others are new.

    Args:
        source: a file, URL or known name, or a key of zoo.TRANSFER_SOURCES.
        freezed: number of discriminator layers to freeze (Mo et al. 2020, arXiv 2002.10964).

    Raises:
        UserError: if the file holds no StyleGAN with its discriminator, or a StyleGAN3 for other images.
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
    if generator.img_channels != dataset.num_channels and isinstance(generator, stylegan3.Generator):
        raise UserError(
            f"--resume={source}: its images have {generator.img_channels} channels, those of --data "
            f"{dataset.num_channels}; tools/dataset_tool.py --channels makes data of another number"
        )
    if generator.img_resolution != dataset.resolution and isinstance(generator, stylegan3.Generator):
        raise UserError(
            f"--resume={source}: its images have {generator.img_resolution} pixels a side, those of --data "
            f"{dataset.resolution}, and a StyleGAN3's layers are laid out for its own; tools/dataset_tool.py "
            "--resolution makes data of another"
        )
    blocks = _arguments(discriminator).arguments.get("block_kwargs") or {}
    blocks = {name: value for name, value in blocks.items() if name != "freeze_layers"}
    if freezed:
        blocks["freeze_layers"] = freezed
    images = dict(c_dim=dataset.label_dim, img_resolution=dataset.resolution, img_channels=dataset.num_channels)
    generator, new_in_g = rebuilt(generator, **images)
    discriminator, new_in_d = rebuilt(discriminator, **images, block_kwargs=blocks)
    notes = new_parts(generator=new_in_g, discriminator=new_in_d)
    return GAN(generator, discriminator, rebuilt(ema, **images)[0], notes)


def new_parts(**new: list[str]) -> tuple[str, ...]:
    """A sentence for each network, by its role, of which parts are new."""
    why = "is as in the file, but for what the images or classes of --data ask for, which is new"
    return tuple(f"{role} {why}: {', '.join(parts)}" for role, parts in new.items() if parts)


def _arguments(network: PersistentModule) -> inspect.BoundArguments:
    return inspect.signature(type(network)).bind(*network._init_args, **network.init_kwargs)


def rebuilt(network: Network, **changes: Any) -> tuple[Network, list[str]]:
    """Returns the network if it was built with these arguments, else a new one with all weights that fit.

    Also the names of the modules in the new one, two levels deep, that have weights which are new.
    """
    arguments = _arguments(network)
    if arguments.arguments | changes == arguments.arguments:
        return network, []
    arguments.arguments.update(changes)
    other = type(network)(*arguments.args, **arguments.kwargs)
    own, weights = other.state_dict(), network.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    other.load_state_dict(own | fitting)
    return other, list(dict.fromkeys(".".join(name.split(".")[:2]) for name in own if name not in fitting))
