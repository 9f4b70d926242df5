"""The interfaces that the other modules use: Denoiser, Generator, Space, Critic, FeatureExtractor.

Teacher and fake score are two roles of one Denoiser type. Losses, methods, metrics and tools rely only on a generator
having latents, labels and images. A new teacher or student is one file that implements one of these interfaces.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.labels import Chosen, LabelLaw
from stylegan_di.random import SampleRandom

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on


class Conditional(torch.nn.Module):
    """A network of images that may have labels: `label_dim` numbers, 0: unconditional."""

    img_resolution: int  # the images' height
    img_channels: int
    img_width: int | None = None  # where they are not square
    label_dim: int
    known_labels: LabelLaw | None = None  # how often each label occurs, where that is known

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.img_channels, self.img_resolution, self.img_width or self.img_resolution

    @property
    def label_law(self) -> LabelLaw:
        """How often each label occurs: as is known of its data, else each class as often as the others."""
        return LabelLaw.uniform(self.label_dim) if self.known_labels is None else self.known_labels

    def sample_labels(self, *, rng: SampleRandom) -> Tensor | None:
        """Draws labels [n,label_dim], one from each stream of rng; None for an unconditional network."""
        return self.label_law.draw(rng) if self.label_dim else None


class Denoiser(Conditional, ABC):
    """D(x; sigma) = E[x0 | x = x0 + sigma * n], n ~ N(0, I) (Karras et al. 2022, arXiv 2206.00364, eq. 2-3)."""

    sigma_min: float
    sigma_max: float
    space: Space | None = None  # what it sees of a student's images, where that is not their pixels
    #: Shift and scale of each channel of the latents that it works on, where they are not the autoencoder's own.
    latents: tuple[list[float], list[float]] | None = None

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the denoised image [B,C,H,W], float32 (float64 for a network made `.double()`).

        x [B,C,H,W] noisy image; sigma [B] or scalar, > 0; labels [B,label_dim] one-hot, None for the null label.
        """

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Returns the nearest noise levels that the network supports; by default it supports all."""
        return sigma

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Returns the encoder's feature maps [B,channels,h,w] from fine to coarse; arguments as for `forward`.

        Raises:
            UserError: if the network has no encoder.
        """
        raise UserError(f"a {type(self).__name__} has no features for a critic; choose a teacher that is a U-Net")

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy, from which a fake score starts. A wrapper copies the network that it wraps."""
        return copy.deepcopy(self, {id(self.space): self.space})

    def adapted_copy(self, rank: int) -> Denoiser:
        """Returns a copy that shares this network's frozen weights and trains low-rank adapters of them alone.

        Raises:
            UserError: if networks of this class cannot have adapters.
        """
        raise UserError(
            f"--fake-rank={rank}: a {type(self).__name__} cannot have low-rank adapters; leave it out"
        )

    def beside(
        self, teacher: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Returns what the teacher and this network say of x, in one pass; None unless they share weights."""
        return None

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> Denoiser | None:
        """Makes a denoiser from a snapshot's network and extra entries; None if the network is not of this kind."""
        return None

    def entries(self) -> dict[str, torch.nn.Module]:
        """Returns the networks to write to a snapshot, by entry ('ema').

        Raises:
            UserError: if this class cannot be written to a snapshot.
        """
        raise UserError(f"a {type(self).__name__} cannot be written to a snapshot")

    def checkpoint_activations(self) -> None:
        """Makes the backward pass compute the activations inside the network's blocks again instead of keeping them.

        Copies made from then on do so too.

        Raises:
            UserError: if networks of this class cannot.
        """
        raise UserError(f"--checkpointing: a {type(self).__name__} keeps all its activations; leave it out")

    def compile_network(self) -> None:
        """Makes PyTorch compile the network when it is first called."""
        self.compile()


class Generator(Conditional, ABC):
    """A map from latents to images whose samples are differentiable in its parameters."""

    kind: ClassVar[str] = "generator"  # its name in messages
    options: ClassVar[Sequence[str]] = ()  # what `with_options` takes, such as 'trunc', named as on the command line
    parts: Sequence[str] = ()  # names of the parts that can be frozen
    frozen: Sequence[str] = ()  # names of those that are
    network: torch.nn.Module  # the bare network, for code that needs its particular type
    learns: bool = False  # whether it is the one in training, whose samples may differ from what it is used for
    num_ws: int = 0  # styles of its w, which `mapped` and `uint8_of_ws` are for; 0: it has no w

    @abstractmethod
    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Draws latents of n samples, [n, ...] float32; rng holds n streams."""

    @abstractmethod
    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """Returns images [B,C,H,W], float32, nominally in [-1,1].

        z latents; labels [B,label_dim] one-hot or None; rng: source of any noise inside, None for fixed noise.
        """

    @property
    def latent_kind(self) -> str:
        """The kind of generator whose latents these are: its own, unless it has another generator in it."""
        return self.kind

    @property
    def origin(self) -> Generator:
        """What a training that starts from this is compared with: this, unless it was made of another generator."""
        return self

    @property
    def effective_options(self) -> Sequence[str]:
        """Those of `options` that change this network's images."""
        return self.options

    # In a training.

    def freeze(self, parts: Sequence[str]) -> None:
        """Excludes the named `parts` from all further training.

        Raises:
            UserError: if there is no such part, or no part would be left to train.
        """
        if unknown := [part for part in parts if part not in self.parts]:
            known = f"it has {', '.join(self.parts)}" if self.parts else f"a {self.kind} has none"
            raise UserError(f"--freeze={unknown[0]}: there is no such part; {known}")
        if parts and set(parts) == set(self.parts):
            raise UserError(f"--freeze={','.join(parts)} leaves nothing to train; leave parts out of it")
        self.frozen = tuple(parts)
        self.train(self.training)
        self.requires_grad_(any(parameter.requires_grad for parameter in self.parameters()))

    def part(self, name: str) -> torch.nn.Module:
        """Returns the network of a part."""
        return self.network.get_submodule(name)

    def frozen_modules(self) -> list[torch.nn.Module]:
        """Returns the modules of the frozen parts."""
        return [self.part(name) for name in self.frozen]

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Frozen parts take no gradients."""
        super().requires_grad_(requires_grad)
        for module in self.frozen_modules():
            module.requires_grad_(False)
        return self

    def running_means(self) -> list[Tensor]:
        """Returns the buffers that track one process's samples; training averages them over the processes."""
        return []

    def settle(self, rng: SampleRandom) -> None:
        """Computes what a snapshot needs besides the weights, such as w_avg; rng holds one stream per sample to use."""

    def compile_network(self) -> None:
        """Makes PyTorch compile the network when it is first called, where that gains anything."""

    # On disk.

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> Generator | None:
        """Makes a generator from a snapshot's network and extra entries; None if the network is not of this kind.

        Raises:
            UserError: if the extra entries are invalid.
        """
        return None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """Returns the networks to write to a snapshot, by entry; `trained` is the one of which this is the average.

        Raises:
            UserError: if this class cannot be written to a snapshot.
        """
        raise UserError(f"a {type(self).__name__} cannot be written to a snapshot")

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a snapshot's entries besides the networks; `data` describes the data set as NVlabs' files do."""
        return {}

    # In use.

    def with_options(self, **options: Any) -> Self:
        """Returns a generator that uses the same network with the given `options`.

        Raises:
            UserError: if there is no such option, or the value is not accepted.
        """
        for name, value in options.items():
            if name not in self.options:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                option = f"{option_name(name)}={text}"
                raise UserError(f"{option} is not for a {self.kind}, which this network is: leave it out")
        changed = self._with(**options)
        changed.known_labels = self.known_labels
        return changed

    def _with(self, **options: Any) -> Self:
        """What `with_options` returns, with options that are known to be this class's."""
        return self

    @torch.no_grad()
    def in_batches(self, z: Tensor, labels: Tensor | None, batch: int) -> Tensor:
        """Images [n,C,H,W] of n latents and labels, `batch` at a time, with the network's fixed noise."""
        parts = [slice(start, start + batch) for start in range(0, len(z), batch)]
        return torch.cat([self(z[part], None if labels is None else labels[part]) for part in parts])

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        """Draws images [n,C,H,W] for n seeds; a seed's image does not depend on the other seeds.

        class_index: 0 to label_dim - 1, or a label [label_dim] itself; None draws each label from its seed.
        """
        device = next(self.parameters()).device
        images = []
        for seed in seeds:
            rng = SampleRandom(seed, "draw", 0, [0], device)
            z, labels = self.sample_latents(1, rng=rng), None
            if self.label_dim:
                law = self.label_law.by_seed
                labels = law.chosen(rng.integers(law.total), class_index)
            images.append(self(z, labels))
        return torch.cat(images)

    def mapped(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        """Returns w of n seeds, [n,num_ws,w_dim]; class_index as for `draw`.

        Raises:
            UserError: if it has no w.
        """
        raise UserError(f"a {self.kind} has no w; its latent is the seed's")

    def uint8_of_ws(self, ws: Tensor, seeds: Sequence[int]) -> Tensor:
        """Draws images of ws [n,num_ws,w_dim], uint8 [n,C,H,W] on the CPU; n seeds key any random noise.

        Raises:
            UserError: if it has no w.
        """
        raise UserError(f"a {self.kind} makes no images of w")


class Space(ABC):
    """A differentiable map from the student's images to the teacher's input."""

    resolution: int
    channels: int
    images: tuple[int, int] | None = None  # resolution and channels of what `decode` makes, where there is one

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Maps images [B,C,H,W], nominally in [-1,1], to x, std about sigma_data.

        x is [B,channels,resolution,resolution]; of pixels as they are, it has the images' shape.
        """

    def decode(self, x: Tensor) -> Tensor:
        """Maps x back to images, as far as it can; only where `images` is given."""
        raise NotImplementedError(f"a {type(self).__name__} cannot be decoded")


class Critic(ABC):
    """Discriminates samples of p (real or the teacher's) from the student's, q: its logit estimates log(p / q)."""

    @abstractmethod
    def logits(self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Returns logits [B,1] of clean samples x [B,...], which a critic may noise by noise [B,...] at sigma [B]."""


class FeatureExtractor(torch.nn.Module, ABC):
    """Maps images to feature vectors, including the resizing that the network needs."""

    name: str
    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Maps images uint8 [B,3,H,W] in 0..255 to features float32 [B,dim]."""

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], **arguments: Any) -> Self:
        """Makes the network with these weights, which must be its own; in evaluation mode, without gradients."""
        with torch.device("meta"):
            network = cls(**arguments)
        network.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(False)


class Classifier(FeatureExtractor):
    """A feature extractor with a last layer that gives class probabilities."""

    @abstractmethod
    def probabilities(self, features: Tensor) -> Tensor:
        """Maps features [B,dim] to probabilities [B,classes] without the bias, as the Inception score uses them."""
