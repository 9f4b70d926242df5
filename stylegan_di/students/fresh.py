"""Students that start from nothing but a teacher: --student=decoder, flow or radiance.

Diff-Instruct asks of a generator only that its samples are differentiable (Luo et al. 2023, arXiv 2305.18455, section
3.1). Each of these is a network with `latent_shape`, called with standard normal latents and labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.interfaces import Generator
from stylegan_di.networks.decoder import Decoder
from stylegan_di.networks.flow import Flow
from stylegan_di.networks.radiance import RadianceField
from stylegan_di.random import SampleRandom
from stylegan_di.specs import Range, number
from stylegan_di.torch_utils.precision import at_least_float32

Network = Decoder | Flow | RadianceField
WIDTH = Range(8, 2**16)


class FreshSpec(ABC):
    """What --student names, as the arguments of its network; a frozen dataclass."""

    @abstractmethod
    def network(self, **shape: int) -> Network:
        """Makes the network for shape = img_resolution, img_channels, label_dim.

        Raises:
            ValueError: if it cannot make such images.
        """


@dataclass(frozen=True)
class DecoderSpec(FreshSpec):
    """A decoder as variational autoencoders have, see `networks.decoder`."""

    z_dim: int = number(64, Range(1, 2**16))
    width: int = number(64, WIDTH)

    def network(self, **shape: int) -> Decoder:
        return Decoder(**shape, z_dim=self.z_dim, width=self.width)


@dataclass(frozen=True)
class FlowSpec(FreshSpec):
    """A normalizing flow, see `networks.flow`."""

    depth: int = number(8, Range(1, 256))
    width: int = number(256, WIDTH)

    def network(self, **shape: int) -> Flow:
        return Flow(**shape, depth=self.depth, width=self.width)


@dataclass(frozen=True)
class RadianceSpec(FreshSpec):
    """A radiance field a class, seen by cameras up to `angle` degrees from the front, see `networks.radiance`."""

    width: int = number(64, WIDTH)
    depth: int = number(16, Range(2, 1024))
    angle: float = number(30.0, Range(0, 180))

    def network(self, **shape: int) -> RadianceField:
        return RadianceField(**shape, width=self.width, depth=self.depth, angle=self.angle)


class FreshStudent(Generator):
    """A network that maps standard normal latents [n, *latent_shape] to images, kept as `.network`."""

    network: Network
    network_class: ClassVar[type[Network]]

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return rng.of(n).normal(*self.network.latent_shape)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z as `sample_latents` draws it; labels [B,label_dim] one-hot; rng is not needed: nothing else is random."""
        return at_least_float32(self.network(z, labels))

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> FreshStudent | None:
        return cls(network) if isinstance(network, cls.network_class) else None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        return {"student": self.network}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"dataset_kwargs": dict(data)}


class DecoderStudent(FreshStudent):
    kind = "decoder"
    network_class = Decoder


class FlowStudent(FreshStudent):
    kind = "flow"
    network_class = Flow


class RadianceStudent(FreshStudent):
    kind = "radiance field"
    network_class = RadianceField


#: By name; --student takes these.
FRESH_STUDENTS: dict[str, type[FreshSpec]] = {"decoder": DecoderSpec, "flow": FlowSpec, "radiance": RadianceSpec}
