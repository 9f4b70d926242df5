"""Stateless random numbers, keyed by (seed, purpose, nimg, sample index).

Each sample has its own stream, so a number depends neither on the batch size nor on the number of processes, and
drawing again gives the same number: resuming and repeating a step are exact by construction. Numbers are drawn on
the CPU, so they are equal on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stylegan_di.torch_utils.copies import to_device


def stream(seed: int, purpose: str, nimg: int = 0, index: int = 0) -> np.random.Generator:
    """Returns the random stream of one key (counter-based Philox, keyed by a hash)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{nimg}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


class SampleRandom:
    """Draws random tensors for a batch, from one stream per sample; successive draws continue the streams.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as 'z'; different purposes are independent.
        nimg: images seen when the step began.
        indices: the samples' indices within the step, counted over all processes.
        device: where the drawn tensors are put.
    """

    def __init__(
        self, seed: int, purpose: str, nimg: int, indices: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.streams = [stream(seed, purpose, nimg, index) for index in indices]

    def __len__(self) -> int:
        return len(self.streams)

    def of(self, n: int) -> SampleRandom:
        """The same, where it holds n streams; ValueError for another number."""
        if len(self) != n:
            raise ValueError(f"{n} latents from {len(self)} random streams; one stream a sample is needed")
        return self

    def normal(self, *shape: int) -> Tensor:
        """Draws standard normal numbers [n, *shape], float32."""
        return self._stack([s.standard_normal(shape, dtype=np.float32) for s in self.streams])

    def uniform(self, *shape: int) -> Tensor:
        """Draws uniform numbers in [0, 1), [n, *shape], float32."""
        return self._stack([s.random(shape, dtype=np.float32) for s in self.streams])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draws uniform integers in [0, high), [n, *shape], int64."""
        return self._stack([s.integers(high, size=shape) for s in self.streams])

    def _stack(self, rows: Sequence[np.ndarray | np.generic | float | int]) -> Tensor:
        return to_device(torch.from_numpy(np.stack([np.asarray(row) for row in rows])), self.device)
