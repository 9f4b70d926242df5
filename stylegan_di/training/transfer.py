"""Where a GAN training starts from another GAN: its generator, discriminator and average (--kind=gan --resume)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from stylegan_di import interfaces
from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.snapshots.checkpoint import load_snapshot

#: Short names of the networks that stylegan2-ada offers as starts -> their files (known names, `stylegan_di.zoo`).
TRANSFER_SOURCES = {
    "ffhq256": "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": "lsundog-res256-paper256-kimg100000-noaug.pkl",
}

Network = TypeVar("Network", Generator, Discriminator)


@dataclass(frozen=True)
class GAN:
    """The networks of a StyleGAN2 training."""

    generator: Generator
    discriminator: Discriminator
    ema: Generator


def frozen(layers: int) -> dict[str, Any]:
    """Discriminator's block_kwargs that keep so many layers from training, from the highest resolution on."""
    return {"freeze_layers": layers} if layers else {}


def freeze(model: interfaces.Generator, ema: interfaces.Generator, parts: Sequence[str]) -> None:
    """Freezes parts of a generator as they are in its average, so that the average keeps them too.

    Raises:
        UserError: it has no such part, or nothing else.
    """
    if not parts:
        return
    model.freeze(parts)
    ema.freeze(parts)
    for module, average in zip(model.frozen_modules(), ema.frozen_modules(), strict=True):
        module.load_state_dict(average.state_dict())


def gan_to_resume(source: str, *, label_dim: int, resolution: int, channels: int, freezed: int = 0) -> GAN:
    """The networks of a GAN's pickle for data of label_dim classes.

    They are as in the file; where its number of classes differs from the data's, the layers that depend on it are new.

    Args:
        source: a file, URL or known name, or a key of TRANSFER_SOURCES.
        label_dim, resolution, channels: of the data to train on.
        freezed: layers of the discriminator that are not to be trained (Mo et al. 2020, arXiv 2002.10964).

    Raises:
        UserError: if the file holds no StyleGAN2 with its discriminator, or is for other images.
    """
    networks = load_snapshot(TRANSFER_SOURCES.get(source, source)).networks
    generator, discriminator = networks.get("G"), networks.get("D")
    ema = networks.get("G_ema") or generator
    if not (
        isinstance(generator, Generator) and isinstance(discriminator, Discriminator) and isinstance(ema, Generator)
    ):
        raise UserError(
            f"--resume={source}: training goes on with a generator and a discriminator, and the file's entries are "
            f"{', '.join(networks) or 'none'}; pass a .pkl that --kind=gan or stylegan2-ada wrote"
        )
    found, wanted = (generator.img_resolution, generator.img_channels), (resolution, channels)
    if found != wanted:
        raise UserError(
            f"--resume={source}: its images have resolution and channels {found}, those of --data {wanted}; "
            "tools/dataset_tool.py makes data of another resolution"
        )
    blocks = _arguments(discriminator).arguments.get("block_kwargs") or {}
    blocks = {name: value for name, value in blocks.items() if name != "freeze_layers"}
    return GAN(
        _rebuilt(generator, c_dim=label_dim),
        _rebuilt(discriminator, c_dim=label_dim, block_kwargs=blocks | frozen(freezed)),
        _rebuilt(ema, c_dim=label_dim),
    )


def _arguments(network: Network) -> inspect.BoundArguments:
    """The arguments that a network was built with, by name."""
    return inspect.signature(type(network)).bind(*network._init_args, **network.init_kwargs)


def _rebuilt(network: Network, **changes: Any) -> Network:
    """The network itself if it was built with these arguments, else one that is, with all weights that fit it."""
    arguments = _arguments(network)
    if arguments.arguments | changes == arguments.arguments:
        return network
    arguments.arguments.update(changes)
    other = type(network)(*arguments.args, **arguments.kwargs)
    own, weights = other.state_dict(), network.state_dict()
    fitting = {name: weights[name] for name, value in own.items() if _same_shape(weights.get(name), value)}
    other.load_state_dict(own | fitting)
    return other


def _same_shape(first: torch.Tensor | None, second: torch.Tensor) -> bool:
    return first is not None and first.shape == second.shape
