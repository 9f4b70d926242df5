"""What a run tells its user: statistics by tick, the log line, the table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stylegan_di.dnnlib.progress import format_time

SIGMA_BINS = (0.2, 1.0)  # denoising losses are told apart below, between and above these noise levels


class Statistics:
    """Means and deviations of named scalars since the last report; values stay on their device until then."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._with_sigma: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Records scalars, or vectors of per-sample values."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach().flatten())

    def add_by_sigma(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Records per-sample values [B], told apart by their noise levels sigma [B] at the report; see `by_sigma`."""
        self._with_sigma.setdefault(name, []).append((values.detach(), sigma))

    def drain(self) -> dict[str, dict[str, float]]:
        """{name: {num, mean, std}} of what was added, and starts anew; names without a value are left out.

        Values that are not finite are only counted, as 'nonfinite'.
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

    def drain_mean(self, name: str, default: float) -> Tensor:
        """The mean of a name's values that are not NaN, [] on their device, or `default`; starts anew."""
        mean = self.tensors()[name].nanmean().nan_to_num(nan=default)
        self._values.clear()
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """All values since the last report, [n] by name."""
        for name, pairs in self._with_sigma.items():
            for values, sigma in pairs:
                self.add(by_sigma(name, values, sigma))
        self._with_sigma.clear()
        return {name: torch.cat(values) for name, values in self._values.items()}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes up what `tensors` gave, in place of what is there."""
        self._with_sigma.clear()
        self._values = {name: [values.to(device)] for name, values in tensors.items()}


def by_sigma(name: str, values: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Per-sample values [B] split into bins of noise level: {'name/sigma<0.2': [...], ...}."""
    low, high = SIGMA_BINS
    return {
        f"{name}/sigma<{low:g}": values[sigma < low],
        f"{name}/sigma{low:g}-{high:g}": values[(sigma >= low) & (sigma < high)],
        f"{name}/sigma>{high:g}": values[sigma >= high],
    }


class Clock:
    """Time since the start of a run and time to go, from the images seen.

    Args:
        total_nimg: images of the whole run.
        nimg, elapsed: images seen and seconds spent before, for a run that goes on.
    """

    def __init__(self, total_nimg: int, nimg: int = 0, elapsed: float = 0.0) -> None:
        self._total_nimg = total_nimg
        self._first_nimg = nimg
        self._before = elapsed
        self._start = time.monotonic()
        self._last = (self._start, nimg)

    def elapsed(self) -> float:
        """Seconds since the start, without the time between a stop and going on."""
        return self._before + time.monotonic() - self._start

    def tick(self, nimg: int) -> str:
        """'sec/kimg 8.77 images/s 114.0 elapsed 1m 05s left 3m 20s'; the rate is that since the last tick."""
        now = time.monotonic()
        (last, last_nimg), self._last = self._last, (now, nimg)
        rate = (nimg - last_nimg) / (now - last)
        left = (self._total_nimg - nimg) * (now - self._start) / (nimg - self._first_nimg)
        return (
            f"sec/kimg {1000 / rate:<7.2f} images/s {rate:<7.1f} elapsed {format_time(self.elapsed()):<8s} "
            f"left {format_time(max(left, 0.0))}"
        )


def append_json_line(path: Path, values: Mapping[str, object]) -> None:
    """Adds one line to a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def comparison_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The metrics before and after, one row each."""
    width = max([len("metric"), *map(len, after)])
    lines = [f"{'metric':<{width}s}  {'before':>10s}  {'after':>10s}  {'ratio':>7s}"]
    for name, value in after.items():
        old = before.get(name)
        start = "-" if old is None else f"{old:.4f}"
        ratio = f"{value / old:.3f}" if old else "-"
        lines.append(f"{name:<{width}s}  {start:>10s}  {value:>10.4f}  {ratio:>7s}")
    return "\n".join(lines)
