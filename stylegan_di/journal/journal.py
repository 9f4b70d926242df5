"""The journal of a run collects what its steps report, and hands it to the sinks at each tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.journal.sinks import Sink
from stylegan_di.journal.statistics import Statistics
from stylegan_di.torch_utils import distributed


class Journal:
    """Collects statistics in every process and writes them in the first one.

    Args:
        sinks: receive the reports; only the first process's are used.
        device: the device of the values.
    """

    def __init__(self, sinks: Sequence[Sink] = (), device: torch.device | str = "cpu") -> None:
        self.sinks = tuple(sinks) if distributed.rank() == 0 else ()
        self.statistics = Statistics(device)

    # During a step.

    def scalars(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars, or per-sample vectors, for this process's samples."""
        self.statistics.add(values)

    def shared(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars that are equal in all processes only once."""
        if distributed.rank() == 0:
            self.statistics.add(values)

    def by_sigma(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Records per-sample values [B], to be reported separately by noise level sigma [B]."""
        self.statistics.add_by_sigma(name, values, sigma)

    # Between steps.

    def drain(self) -> dict[str, dict[str, float]]:
        """Returns {name: {num, mean, std}} over all processes since the last call; all processes must call this."""
        return self.statistics.drain()

    def tick(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Hands the statistics of a tick to the sinks."""
        for sink in self.sinks:
            sink.scalars(values)

    def images(self, name: str, images: Tensor, columns: int) -> None:
        """Hands a grid of images uint8 [n,C,H,W] to the sinks."""
        for sink in self.sinks:
            sink.images(name, images, columns)

    def table(self, name: str, row: Mapping[str, Any]) -> None:
        """Hands a row of a named table, such as 'metric-fid50k_full', to the sinks."""
        for sink in self.sinks:
            sink.table(name, row)

    def say(self, text: str) -> None:
        """Hands a line for the user to the sinks."""
        for sink in self.sinks:
            sink.text(text)

    # For the training state.

    def values(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Returns what was recorded since the last tick; all processes must call this."""
        return {f"report.{name}": values for name, values in self.statistics.tensors().items()}

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` returned."""
        start = "report."
        self.statistics.restore({n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)})
