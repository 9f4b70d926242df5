"""The roles that everything is written against: Denoiser, Generator, Space, Critic, FeatureExtractor.

Teacher and fake score are two roles of one Denoiser type. Losses, methods, metrics and tools know a generator only as
something with latents, labels and images. A new teacher or student is one file that implements one of these.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.labels import one_hot
from stylegan_di.random import SampleRandom


class Denoiser(torch.nn.Module, ABC):
    """D(x; sigma) = E[x0 | x = x0 + sigma * n], n ~ N(0, I) (Karras et al. 2022, arXiv 2206.00364, eq. 2-3)."""

    img_resolution: int
    img_channels: int
    label_dim: int  # 0: unconditional
    sigma_min: float
    sigma_max: float

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B,C,H,W] noisy image; sigma [B] or scalar, > 0; labels [B,label_dim] one-hot, None for the null label.

        Returns the denoised image [B,C,H,W], float32 (float64 for a network made `.double()`).
        """

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows; by default it knows all."""
        return sigma

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """The encoder's feature maps [B,channels,h,w] for a forward pass's arguments, from fine to coarse.

        Raises:
            UserError: the network has no encoder that could be asked.
        """
        raise UserError(f"a {type(self).__name__} has no features for a critic; choose a teacher that is a U-Net")

    def trainable_copy(self) -> Denoiser:
        """What a fake score starts from: a copy that can be trained. A wrapper copies the network that it wraps."""
        return copy.deepcopy(self)

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> Denoiser | None:
        """The denoiser of a snapshot's network, with what is beside it; None if the network is not of its kind."""
        return None

    def entries(self) -> dict[str, torch.nn.Module]:
        """How a snapshot holds the network, by entry ('ema').

        Raises:
            UserError: it has no form of its own in a snapshot.
        """
        raise UserError(f"a {type(self).__name__} cannot be written to a snapshot")

    def compile_network(self) -> None:
        """Makes PyTorch compile the network when it is first called."""
        self.compile()


class Generator(torch.nn.Module, ABC):
    """A map from latents to images whose samples are differentiable in its parameters."""

    kind: ClassVar[str] = "generator"  # what messages call it
    options: ClassVar[Sequence[str]] = ()  # of its use, such as 'trunc' or 'steps', named as on the command line
    parts: Sequence[str] = ()  # what can be frozen, by name
    network: torch.nn.Module  # the bare network, for what is particular to it
    img_resolution: int
    img_channels: int
    label_dim: int  # 0: unconditional

    @abstractmethod
    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Latents of n samples, [n, ...] float32; rng holds n streams."""

    @abstractmethod
    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z latents; labels [B,label_dim] one-hot or None; rng: source of any noise inside, None for fixed noise.

        Returns images [B,C,H,W], float32, nominally in [-1,1].
        """

    # In a training.

    def freeze(self, parts: Sequence[str]) -> None:
        """Keeps the named `parts` as they are in every training from now on.

        Raises:
            UserError: it has no such part, or nothing else.
        """
        if unknown := [part for part in parts if part not in self.parts]:
            known = f"it has {', '.join(self.parts)}" if self.parts else f"a {self.kind} has none"
            raise UserError(f"--freeze={unknown[0]}: there is no such part; {known}")
        if parts and set(parts) == set(self.parts):
            raise UserError(f"--freeze={','.join(parts)} leaves nothing to train; leave parts out of it")

    def frozen_modules(self) -> list[torch.nn.Module]:
        """The networks behind the names of the frozen parts."""
        return []

    def running_means(self) -> list[Tensor]:
        """Buffers that follow the samples of a process, for a training to average over the processes."""
        return []

    def settle(self, rng: SampleRandom) -> None:
        """Computes what a snapshot needs beside the weights, such as w_avg; rng holds the streams of the samples."""

    def compile_network(self) -> None:
        """Makes PyTorch compile the network when it is first called, where that gains anything."""

    # On disk.

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> Generator | None:
        """The generator of a snapshot's network, with what is beside it; None if the network is not of its kind.

        Raises:
            UserError: what is beside it is wrong.
        """
        return None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """How a snapshot holds this generator, by entry; `trained` is the one that it is the average of.

        Raises:
            UserError: it has no form of its own in a snapshot.
        """
        raise UserError(f"a {type(self).__name__} cannot be written to a snapshot")

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What a snapshot holds beside the networks; `data` describes the data set as NVlabs' files do."""
        return {}

    # In use.

    def with_options(self, **options: Any) -> Generator:
        """The same network with other `options` of its use.

        Raises:
            UserError: it has no such option, or the value is not accepted.
        """
        for name, value in options.items():
            if name not in self.options:
                option = f"{option_name(name)}={value}"
                raise UserError(f"{option} is not for a {self.kind}, which this network is: leave it out")
        return self

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: int | None = None) -> Tensor:
        """Images [n,C,H,W] of n seeds; a seed gives the same image whatever other seeds there are.

        class_index: 0 to label_dim - 1; None draws each label from its seed.
        """
        device = next(self.parameters()).device
        images = []
        for seed in seeds:
            rng = SampleRandom(seed, "draw", 0, [0], device)
            z, labels = self.sample_latents(1, rng=rng), None
            if self.label_dim:
                drawn = rng.integers(self.label_dim)
                labels = one_hot(drawn if class_index is None else torch.full_like(drawn, class_index), self.label_dim)
            images.append(self(z, labels))
        return torch.cat(images)


class Space(ABC):
    """What a teacher sees of a student's image: a differentiable map from images to the teacher's input."""

    resolution: int
    channels: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images [B,C,H,W], nominally in [-1,1] -> x [B,channels,resolution,resolution] of about sigma_data."""


class Critic(ABC):
    """Tells the samples of p (real images or the teacher's) from the student's, q: its logit estimates log(p / q)."""

    @abstractmethod
    def logits(self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Logits [B,1] of clean samples x [B,...]; noise as x and sigma [B] noise them, where the critic wants that."""


class FeatureExtractor(torch.nn.Module, ABC):
    """Images to feature vectors; resizing to what the network wants is part of it."""

    name: str
    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> features float32 [B,dim]."""


class Classifier(FeatureExtractor):
    """An extractor whose features a last layer turns into class probabilities."""

    @abstractmethod
    def probabilities(self, features: Tensor) -> Tensor:
        """features [B,dim] -> probabilities [B,classes], as the Inception score takes them: without the bias."""
