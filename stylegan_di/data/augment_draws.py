"""Draws the random values of augmentations: first each value, then whether it is applied; if not, it becomes 0."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class RandomSource(Protocol):
    """Draws tensors [n, *shape] for the n samples of a batch; one such source is `stylegan_di.random.SampleRandom`."""

    def normal(self, *shape: int) -> Tensor: ...

    def uniform(self, *shape: int) -> Tensor: ...


class Draws:
    """Draws the values of a batch's transforms.

    Args:
        images: float [N,C,H,W].
        percentile: if given, in [0,1], nothing is random and every value is this percentile of its distribution.
        rng: source of all random numbers; None for PyTorch's global generator.
    """

    def __init__(self, images: Tensor, percentile: float | Tensor | None, rng: RandomSource | None) -> None:
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        self.zeros = images.new_zeros([len(images)], dtype=dtype)
        self.percentile = None if percentile is None else torch.as_tensor(percentile, dtype=dtype, device=images.device)
        self.random = rng or _GlobalRandom(len(images), images.device)

    def choice(self, n: int, probability: Tensor | float) -> Tensor:
        """[N] uniform in 0 .. n-1."""
        if self.percentile is not None:
            return self._all(torch.floor(self.percentile * n))
        return self._gate(torch.floor(self.uniform() * n), probability)

    def symmetric(self, probability: Tensor | float, *shape: int) -> Tensor:
        """[N, *shape] uniform in (-1,1)."""
        if self.percentile is not None:
            return self._all(2 * self.percentile - 1, *shape)
        return self._gate(2 * self.uniform(*shape) - 1, probability)

    def normal(self, probability: Tensor | float, *shape: int) -> Tensor:
        """[N, *shape] standard normal; at percentile q it is erfinv(2q - 1), without sqrt(2), as in NVlabs' code."""
        if self.percentile is not None:
            return self._all(torch.erfinv(2 * self.percentile - 1), *shape)
        return self._gate(self.random.normal(*shape).to(self.zeros), probability)

    def half_normal(self, probability: Tensor | float) -> Tensor:
        """[N] absolute value of a standard normal; at percentile q it is erfinv(q)."""
        if self.percentile is not None:
            return self._all(torch.erfinv(self.percentile))
        return self._gate(self.random.normal().to(self.zeros).abs(), probability)

    def applied(self, probability: Tensor | float) -> Tensor:
        """[N] 1 with the given probability, else 0."""
        ones = torch.ones_like(self.zeros)
        return ones if self.percentile is not None else self._gate(ones, probability)

    def uniform(self, *shape: int) -> Tensor:
        """[N, *shape] uniform in [0,1), always applied."""
        if self.percentile is not None:
            return self._all(self.percentile, *shape)
        return self.random.uniform(*shape).to(self.zeros)

    def _gate(self, values: Tensor, probability: Tensor | float) -> Tensor:
        applied = self.random.uniform(*[1] * (values.ndim - 1)).to(self.zeros) < probability
        return torch.where(applied, values, 0)

    def _all(self, value: Tensor, *shape: int) -> Tensor:
        return value.expand(len(self.zeros), *shape)


class _GlobalRandom:
    """PyTorch's global generator as a RandomSource of n samples."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.n, self.device = n, device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn([self.n, *shape], device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand([self.n, *shape], device=self.device)
