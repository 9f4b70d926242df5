"""Measures the run's timing, and formats it and the table of metrics at its end as lines for the user."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stylegan_di.dnnlib.progress import format_time

#: Beginnings of the names of what differs between two equal runs in stats.jsonl and metric-*.jsonl.
UNSTEADY = ("timestamp", "total_time", "Timing/", "Resources/")
LEAST_SECONDS = 1.0  # of training since the last tick, below which the rate of the tick before is told


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
        self._maintenance = 0.0  # seconds since the last tick
        self._all_maintenance = 0.0
        self._rate = 0.0  # images a second up to the last tick

    def elapsed(self) -> float:
        """Returns the seconds of the run, without the time between a stop and resuming."""
        return self._before + time.monotonic() - self._start

    @contextmanager
    def maintenance(self) -> Iterator[None]:
        """Counts the time inside as maintenance: snapshots with their metrics, and states."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self._maintenance += seconds
            self._all_maintenance += seconds

    def trained(self) -> float:
        """Returns the seconds of training since the start or the resumption, without maintenance."""
        return time.monotonic() - self._start - self._all_maintenance

    def tick(self, nimg: int) -> dict[str, float]:
        """Ends a tick; returns its timing by stylegan2-ada's names. A tick's seconds are without maintenance."""
        seconds, images = self._training(nimg)
        self._rate = images / seconds
        timing = {
            "total_sec": self.elapsed(),
            "total_hours": self.elapsed() / 3600,
            "total_days": self.elapsed() / 86400,
            "sec_per_tick": seconds,
            "sec_per_kimg": seconds / images * 1000,
            "maintenance_sec": self._maintenance,
        }
        self._last, self._maintenance = (time.monotonic(), nimg), 0.0
        return {f"Timing/{name}": value for name, value in timing.items()}

    def line(self, nimg: int) -> str:
        """Returns 'sec/kimg 8.77 images/s 114.0 elapsed 1m 05s left 3m 20s', with the rate of the last tick."""
        return (
            f"sec/kimg {1000 / self._rate:<7.2f} images/s {self._rate:<7.1f} "
            f"elapsed {format_time(self.elapsed()):<8s} left {self._left(nimg)}"
        )

    def live(self, nimg: int) -> str:
        """Returns 'kimg 12.3 of 200, 6 %, 114 images/s, 3m 20s left', with the rate since the last tick."""
        seconds, images = self._training(nimg)
        rate = images / seconds if seconds >= LEAST_SECONDS else self._rate
        speed = f"{rate:.3g} images/s, " if rate else ""
        done = f"kimg {nimg / 1000:.1f} of {self._total_nimg / 1000:g}, {min(100 * nimg // self._total_nimg, 100)} %"
        return f"{done}, {speed}{self._left(nimg)} left"

    def _training(self, nimg: int) -> tuple[float, int]:
        """The seconds of training since the last tick, and the images seen in them."""
        last, last_nimg = self._last
        return max(time.monotonic() - last - self._maintenance, 1e-9), nimg - last_nimg

    def _left(self, nimg: int) -> str:
        per_image = (time.monotonic() - self._start) / (nimg - self._first_nimg)
        return format_time(max((self._total_nimg - nimg) * per_image, 0.0))


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
