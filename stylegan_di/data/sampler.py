"""Draws batches in a shuffled order that is a pure function of (seed, images seen).

The image at position p of a training is perm_e[p mod n], where e = p div n is the epoch and perm_e a permutation drawn
from the stream (seed, 'data', e). It does not depend on resuming, on the batch size or on the number of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.random import stream


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = stream(seed, "data", epoch).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(n: int, *, seed: int, nimg: int, batch: int) -> np.ndarray:
    """Returns indices int64 [batch] into a data set of n images, for the step that begins after nimg images."""
    positions = np.arange(nimg, nimg + batch)
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty(batch, dtype=np.int64)
    for epoch in range(nimg // n, (nimg + batch - 1) // n + 1):
        inside = epochs == epoch
        indices[inside] = _permutation(n, seed, epoch)[offsets[inside]]
    return indices


def load_batch(dataset: ImageDataset, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Loads images uint8 [B,C,H,W] and labels float32 [B,label_dim] for indices [B], on the CPU."""
    images, labels = zip(*(dataset[int(index)] for index in indices), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))


def iterate_batches(
    dataset: ImageDataset,
    *,
    seed: int,
    nimg: int,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields a training's batches without end, in the form of `load_batch`.

    Args:
        seed, nimg: where the order begins; nimg grows by `batch` with each batch.
        batch: images over all processes; process `rank` of `world_size` gets its share, a contiguous slice.
        num_workers: threads that load ahead (PIL decodes without holding Python's lock); 0 loads on demand.

    Raises UserError if an image cannot be read, in the step that needs it.
    """
    if batch % world_size:
        raise ValueError(f"a batch of {batch} cannot be divided among {world_size} processes")
    share = batch // world_size

    def indices(step: int) -> np.ndarray:
        whole = batch_indices(len(dataset), seed=seed, nimg=nimg + step * batch, batch=batch)
        return whole[rank * share : (rank + 1) * share]

    if num_workers == 0:
        for step in count():
            yield load_batch(dataset, indices(step))
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="data")
    pending: deque[Future[tuple[Tensor, Tensor]]] = deque()
    try:
        for step in count():
            pending.append(pool.submit(load_batch, dataset, indices(step)))
            if len(pending) > num_workers:
                yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
