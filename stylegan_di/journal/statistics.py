"""Computes means and deviations of named scalars between two reports, over the samples of all processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stylegan_di.torch_utils import distributed

SIGMA_BINS = (0.2, 1.0)  # losses are reported separately below, between and above these noise levels


class Statistics:
    """Collects named scalars; values stay on `device` until the next report."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._values: dict[str, list[Tensor]] = {}
        self._with_sigma: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars, or vectors of per-sample values."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach().flatten())

    def add_by_sigma(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Records per-sample values [B], which the report splits by noise level sigma [B]; see `by_sigma`."""
        self._with_sigma.setdefault(name, []).append((values.detach(), sigma))

    def drain(self) -> dict[str, dict[str, float]]:
        """Returns {name: {num, mean, std}} over all processes and clears the values; omits names without a value.

        Values that are not finite are only counted, as 'nonfinite'. All processes must call this.
        """
        result = {}
        for name, flat in sorted(self.tensors().items()):
            finite = flat[flat.isfinite()].to("cpu", torch.float64)
            if finite.numel():
                std = float(finite.std(correction=0))
                result[name] = {"num": finite.numel(), "mean": float(finite.mean()), "std": std}
                if finite.numel() < flat.numel():
                    result[name]["nonfinite"] = flat.numel() - finite.numel()
        self._values.clear()
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Returns all processes' values since the last report, [n] by name; all processes must call this."""
        for name, pairs in self._with_sigma.items():
            for values, sigma in pairs:
                self.add(by_sigma(name, values, sigma))
        self._with_sigma.clear()
        return distributed.gather_ragged({name: torch.cat(values) for name, values in self._values.items()})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the values by what `tensors` returned; the first process takes all of it."""
        self._with_sigma.clear()
        own = tensors if distributed.rank() == 0 else {}
        self._values = {name: [values.to(self.device)] for name, values in own.items()}


def by_sigma(name: str, values: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Splits per-sample values [B] into bins of noise level: {'name/sigma<0.2': [...], ...}."""
    low, high = SIGMA_BINS
    return {
        f"{name}/sigma<{low:g}": values[sigma < low],
        f"{name}/sigma{low:g}-{high:g}": values[(sigma >= low) & (sigma < high)],
        f"{name}/sigma>{high:g}": values[sigma >= high],
    }
