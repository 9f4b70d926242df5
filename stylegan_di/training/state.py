"""What a training is made of: the networks that move, their optimizers, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylegan_di.data.augment_edm import AugmentPipe as EDMAugmentPipe
from stylegan_di.interfaces import Denoiser
from stylegan_di.random import SampleRandom


@dataclass
class TrainState:
    """Everything that changes during a training."""

    model: torch.nn.Module  # a Denoiser (edm) or a Generator (gan, di)
    ema: torch.nn.Module
    optimizers: dict[str, torch.optim.Optimizer]  # by role: model, fake_score, discriminator
    fake_score: Denoiser | None = None
    discriminator: torch.nn.Module | None = None
    augment_pipe: torch.nn.Module | EDMAugmentPipe | None = None  # of the discriminator, or of a denoiser's images
    pl_mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    cur_nimg: int = 0
    cur_tick: int = 0
    cur_step: int = 0


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

    def labels(self, purpose: str, chunk: range, label_dim: int) -> Tensor | None:
        """One-hot labels [n,label_dim] drawn uniformly over the classes; None when there are none."""
        if label_dim == 0:
            return None
        classes = self.random(f"{purpose}/labels", chunk).integers(label_dim)
        return torch.nn.functional.one_hot(classes, label_dim).float()


@contextmanager
def trainable(module: torch.nn.Module, *, train_mode: bool) -> Iterator[None]:
    """The module's parameters take gradients inside and not outside; dropout and running means only in train mode."""
    module.train(train_mode).requires_grad_(True)
    try:
        yield
    finally:
        module.eval().requires_grad_(False)
