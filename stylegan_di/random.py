"""Stateless random numbers, keyed by (seed, purpose, nimg, sample index).

Each sample has its own stream, so a number depends neither on the batch size nor on the number of processes, and
drawing again gives the same number: resuming and repeating a step are exact by construction. Numbers are drawn on
the CPU, so they are equal on every device.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from stylegan_di.torch_utils.copies import to_device

WORKERS = min(4, os.cpu_count() or 1)  # threads that draw numbers for a GPU
WORTH_THREADS = 2**14  # from so many numbers on


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
        return self._filled(shape, lambda stream, row: stream.standard_normal(dtype=np.float32, out=row))

    def uniform(self, *shape: int) -> Tensor:
        """Draws uniform numbers in [0, 1), [n, *shape], float32."""
        return self._filled(shape, lambda stream, row: stream.random(dtype=np.float32, out=row))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draws uniform integers in [0, high), [n, *shape], int64."""
        rows = np.stack([np.asarray(stream.integers(high, size=shape)) for stream in self.streams])
        return to_device(torch.from_numpy(rows), self.device)

    def choose(self, ends: tuple[int, ...]) -> Tensor:
        """Draws indices into a table, [n], int64: index i as often as ends[i] - ends[i - 1] among ends[-1]."""
        rows = [bisect.bisect_right(ends, int(stream.integers(ends[-1]))) for stream in self.streams]
        return to_device(torch.tensor(rows), self.device)

    def _filled(self, shape: tuple[int, ...], draw: Callable[[np.random.Generator, np.ndarray], object]) -> Tensor:
        """Lets each stream fill its row, float32; threads share the work where a GPU waits for it."""
        on_gpu = self.device.type == "cuda"
        numbers = torch.empty([len(self), *shape], pin_memory=on_gpu)
        rows = numbers.numpy().reshape(len(self), -1)

        def fill(first: int) -> None:
            for index in range(first, len(self), workers):
                draw(self.streams[index], rows[index])

        workers = WORKERS if on_gpu and rows.size >= WORTH_THREADS else 1
        if workers == 1:
            fill(0)
        else:
            list(_pool().map(fill, range(workers)))
        return to_device(numbers, self.device)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS)
