"""The samples of one step: which of them a process computes, their random numbers, and the real images for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import iterate_batches
from stylegan_di.diffusion import NoiseLaw
from stylegan_di.images import from_uint8
from stylegan_di.interfaces import Generator
from stylegan_di.labels import one_hot
from stylegan_di.random import SampleRandom, stream
from stylegan_di.torch_utils import distributed

Samples = tuple[Tensor, Tensor | None]  # images [n,C,H,W] in [-1,1], labels [n,label_dim]
Reals = Callable[[range], Samples]  # a chunk -> its real images


@dataclass(frozen=True)
class Batch:
    """The samples of one step: which of them this process computes, in chunks that fit its device."""

    seed: int
    nimg: int  # images seen when the step began: the key of its random numbers
    size: int  # samples of the step over all processes
    chunks: tuple[range, ...]  # sample indices of this process
    device: torch.device

    @classmethod
    def of_step(
        cls, *, seed: int, nimg: int, size: int, batch_gpu: int, rank: int, world_size: int, device: torch.device
    ) -> Batch:
        """Sample indices [0, size) shared out evenly over processes, then over chunks of at most batch_gpu."""
        share = size // world_size
        own = range(rank * share, (rank + 1) * share)
        chunks = tuple(own[start : start + batch_gpu] for start in range(0, share, batch_gpu))
        return cls(seed, nimg, size, chunks, device)

    @property
    def local_size(self) -> int:
        """Samples of the step in this process: what its gradients are averaged over."""
        return sum(map(len, self.chunks))

    def random(self, purpose: str, chunk: range) -> SampleRandom:
        """Random streams of a chunk's samples."""
        return SampleRandom(self.seed, purpose, self.nimg, chunk, self.device)

    def seed_dropout(self, chunk: range) -> None:
        """Seeds PyTorch's own random numbers, which dropout draws: a chunk's are the same in whichever process."""
        torch.manual_seed(int(stream(self.seed, "dropout", self.nimg, chunk.start).integers(2**31)))

    def labels(self, purpose: str, chunk: range, label_dim: int) -> Tensor | None:
        """One-hot labels [n,label_dim] drawn uniformly over the classes; None when there are none."""
        if label_dim == 0:
            return None
        return one_hot(self.random(f"{purpose}/labels", chunk).integers(label_dim), label_dim)

    def noise(self, law: NoiseLaw, purpose: str, chunk: range, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standard normal noise as x [n,...] and noise levels [n] of a law."""
        rng = self.random(purpose, chunk)
        sigma = law.sigma(rng.normal() if law.normal else rng.uniform())
        return rng.normal(*x.shape[1:]), sigma


def generated(generator: Generator, batch: Batch, chunk: range, purpose: str) -> Samples:
    """Images of fresh latents and uniformly drawn labels."""
    labels = batch.labels(purpose, chunk, generator.label_dim)
    z = generator.sample_latents(len(chunk), rng=batch.random(f"{purpose}/z", chunk))
    return generator(z, labels, rng=batch.random(f"{purpose}/noise", chunk)), labels


class RealImages:
    """The real images of a training, step by step: each process gets its share of the shuffled data set.

    Args:
        dataset: what they are taken from.
        num_workers: threads that load ahead.
    """

    def __init__(self, dataset: ImageDataset, num_workers: int) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def take(self, batch: Batch) -> Reals:
        """Those of a step; steps follow each other."""
        if self._batches is None:  # begins where the training is
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
            own = labels[part].to(batch.device) if self.dataset.label_dim else None
            return from_uint8(images[part].to(batch.device)), own

        return load
