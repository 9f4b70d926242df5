"""Formats the run's timing, and the table of metrics at its end, as lines for the user."""

from __future__ import annotations

import time
from collections.abc import Mapping

from stylegan_di.dnnlib.progress import format_time


class Clock:
    """Measures the time since the start of a run and estimates the time left from the images seen.

    Args:
        total_nimg: images of the whole run.
        nimg, elapsed: for a resumed run, the images seen and seconds spent before.
    """

    def __init__(self, total_nimg: int, nimg: int = 0, elapsed: float = 0.0) -> None:
        self._total_nimg = total_nimg
        self._first_nimg = nimg
        self._before = elapsed
        self._start = time.monotonic()
        self._last = (self._start, nimg)

    def elapsed(self) -> float:
        """Returns the seconds of training, without the time between a stop and resuming."""
        return self._before + time.monotonic() - self._start

    def tick(self, nimg: int) -> str:
        """Returns 'sec/kimg 8.77 images/s 114.0 elapsed 1m 05s left 3m 20s', with the rate since the last tick."""
        now = time.monotonic()
        (last, last_nimg), self._last = self._last, (now, nimg)
        rate = (nimg - last_nimg) / (now - last)
        left = (self._total_nimg - nimg) * (now - self._start) / (nimg - self._first_nimg)
        return (
            f"sec/kimg {1000 / rate:<7.2f} images/s {rate:<7.1f} elapsed {format_time(self.elapsed()):<8s} "
            f"left {format_time(max(left, 0.0))}"
        )


def comparison_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Formats the metrics before and after training, one row each."""
    width = max([len("metric"), *map(len, after)])
    lines = [f"{'metric':<{width}s}  {'before':>10s}  {'after':>10s}  {'ratio':>7s}"]
    for name, value in after.items():
        old = before.get(name)
        start = "-" if old is None else f"{old:.4f}"
        ratio = f"{value / old:.3f}" if old else "-"
        lines.append(f"{name:<{width}s}  {start:>10s}  {value:>10.4f}  {ratio:>7s}")
    return "\n".join(lines)
