"""The samples of one step: their division among processes, their random numbers, and their real images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import iterate_batches
from stylegan_di.diffusion import NoiseLaw
from stylegan_di.images import from_uint8
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import LabelLaw
from stylegan_di.random import SampleRandom, stream
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.copies import to_device

Samples = tuple[Tensor, Tensor | None]  # images [n,C,H,W] in [-1,1], labels [n,label_dim]
Reals = Callable[[range], Samples]  # a chunk -> its real images


@dataclass(frozen=True)
class Batch:
    """The samples of one step that this process computes, in chunks that fit its device."""

    seed: int
    nimg: int  # images seen when the step began; keys its random numbers
    size: int  # samples of the step over all processes
    chunks: tuple[range, ...]  # sample indices of this process
    device: torch.device

    @classmethod
    def of_step(
        cls, *, seed: int, nimg: int, size: int, batch_gpu: int, rank: int, world_size: int, device: torch.device
    ) -> Batch:
        """Divides sample indices [0, size) evenly among processes, then into chunks of at most batch_gpu."""
        share = size // world_size
        own = range(rank * share, (rank + 1) * share)
        chunks = tuple(own[start : start + batch_gpu] for start in range(0, share, batch_gpu))
        return cls(seed, nimg, size, chunks, device)

    @property
    def local_size(self) -> int:
        """The number of this process's samples, over which its gradients are averaged."""
        return sum(map(len, self.chunks))

    def random(self, purpose: str, chunk: range) -> SampleRandom:
        """Returns the random streams of a chunk's samples."""
        return SampleRandom(self.seed, purpose, self.nimg, chunk, self.device)

    def seed_dropout(self, chunk: range) -> None:
        """Seeds PyTorch's generator, which dropout uses, so that a chunk gets the same numbers in any process."""
        torch.manual_seed(int(stream(self.seed, "dropout", self.nimg, chunk.start).integers(2**31)))

    def labels(self, purpose: str, chunk: range, law: LabelLaw) -> Tensor | None:
        """Draws labels [n,label_dim]; None if label_dim is 0."""
        return law.draw(self.random(f"{purpose}/labels", chunk)) if law.label_dim else None

    def noise(
        self, law: NoiseLaw, purpose: str, chunk: range, x: Tensor, within: Denoiser | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws standard normal noise, shaped as x [n,...], and noise levels [n] of a law."""
        rng = self.random(purpose, chunk)
        sigma = law.sigma(rng.normal() if law.normal else rng.uniform())
        noise = rng.normal(*x.shape[1:])
        return noise, sigma if within is None else sigma.clamp(within.sigma_min, within.sigma_max)


def generated(generator: Generator, batch: Batch, chunk: range, purpose: str) -> Samples:
    """Generates images from fresh latents and labels, which are as frequent as the generator's law says."""
    labels = batch.labels(purpose, chunk, generator.label_law)
    z = generator.sample_latents(len(chunk), rng=batch.random(f"{purpose}/z", chunk))
    return generator(z, labels, rng=batch.random(f"{purpose}/noise", chunk)), labels


class RealSource(ABC):
    """Supplies what counts as real, step by step."""

    @abstractmethod
    def take(self, batch: Batch) -> Reals:
        """Returns the real images of a step; must be called for consecutive steps."""


class RealImages(RealSource):
    """Supplies the images of a data set: each process gets its share of them, shuffled.

    num_workers: number of threads that load ahead.
    """

    def __init__(self, dataset: ImageDataset, num_workers: int) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def take(self, batch: Batch) -> Reals:
        if self._batches is None:  # start at the position of the training
            self._batches = iterate_batches(
                self.dataset,
                seed=batch.seed,
                nimg=batch.nimg,
                batch=batch.size,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                num_workers=self.num_workers,
            )
        images, labels = next(self._batches)
        first = batch.chunks[0].start

        def load(chunk: range) -> Samples:
            part = slice(chunk.start - first, chunk.stop - first)
            own = to_device(labels[part], batch.device) if self.dataset.label_dim else None
            return from_uint8(to_device(images[part], batch.device)), own

        return load
