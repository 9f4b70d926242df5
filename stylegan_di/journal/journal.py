"""The journal of a run collects what its steps report, and hands it to the sinks at each tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.journal.sinks import Sink
from stylegan_di.torch_utils import distributed

SIGMA_BINS = (0.2, 1.0)  # losses are reported separately below, between and above these noise levels
PREFIX = "report."  # of names in the training state


class Journal:
    """Collects statistics in every process and writes them in the first one. Its `with` block ends the reports.

    Args:
        sinks: receive the reports; only the first process's are used.
        device: the device of the values, which stay there until the next report.
    """

    def __init__(self, sinks: Sequence[Sink] = (), device: torch.device | str = "cpu") -> None:
        self.sinks = tuple(sinks) if distributed.rank() == 0 else ()
        self.device = device
        self._values: dict[str, list[Tensor]] = {}
        self._with_sigma: dict[str, list[tuple[Tensor, Tensor]]] = {}

    # During a step.

    def scalars(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars, or per-sample vectors, for this process's samples."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach().flatten())

    def shared(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars that are equal in all processes only once."""
        if distributed.rank() == 0:
            self.scalars(values)

    def by_sigma(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Records per-sample values [B], to be reported separately by noise level sigma [B]."""
        self._with_sigma.setdefault(name, []).append((values.detach(), sigma))

    def repeat(self, other: Journal) -> None:
        """Records once more, in copies, all that another journal has recorded since its last report."""
        for name, values in other._values.items():
            self._values.setdefault(name, []).extend(value.clone() for value in values)
        for name, pairs in other._with_sigma.items():
            self._with_sigma.setdefault(name, []).extend((values.clone(), sigma.clone()) for values, sigma in pairs)

    # Between steps.

    def drain(self) -> dict[str, dict[str, float]]:
        """Returns {name: {num, mean, std}} over all processes since the last call; omits names without a value.

        Values that are not finite are only counted, as 'nonfinite'. All processes must call this.
        """
        result = {}
        for name, flat in sorted(self._gathered().items()):
            finite = flat[flat.isfinite()].cpu().double()
            if finite.numel():
                std = float(finite.std(correction=0))
                result[name] = {"num": finite.numel(), "mean": float(finite.mean()), "std": std}
                if finite.numel() < flat.numel():
                    result[name]["nonfinite"] = flat.numel() - finite.numel()
        self._values.clear()
        return result

    def _gathered(self) -> dict[str, Tensor]:
        """All processes' values since the last report, [n] by name, those with noise levels in their bins."""
        low, high = SIGMA_BINS
        for name, pairs in self._with_sigma.items():
            for values, sigma in pairs:
                self.scalars({
                    f"{name}/sigma<{low:g}": values[sigma < low],
                    f"{name}/sigma{low:g}-{high:g}": values[(sigma >= low) & (sigma < high)],
                    f"{name}/sigma>{high:g}": values[sigma >= high],
                })  # fmt: skip
        self._with_sigma.clear()
        return distributed.gather_ragged({name: torch.cat(values) for name, values in self._values.items()})

    def tick(self, values: Mapping[str, Mapping[str, float]]) -> None:
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
        for sink in self.sinks:
            sink.text(text)

    def live(self, text: str) -> None:
        """Hands a line that holds for the moment only to the sinks."""
        for sink in self.sinks:
            sink.live(text)

    def snapshot(self) -> None:
        """Tells the sinks that all of a snapshot has been reported."""
        for sink in self.sinks:
            sink.snapshot()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Tells the sinks how the run ended."""
        ending = "complete" if error is None else " ".join(str(error).split()) or type(error).__name__
        for sink in self.sinks:
            try:
                sink.close(ending)
            except (OSError, UserError):  # as of a folder that has vanished: what ended the run says more
                if error is None:
                    raise

    # For the training state.

    def values(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Returns what was recorded since the last tick; all processes must call this."""
        return {PREFIX + name: values for name, values in self._gathered().items()}

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replaces what was recorded by what `tensors` returned; the first process takes all of it."""
        own = tensors if distributed.rank() == 0 else {}
        self._with_sigma.clear()
        self._values = {
            name.removeprefix(PREFIX): [recorded.to(self.device)]
            for name, recorded in own.items()
            if name.startswith(PREFIX)
        }
