"""The charts of report.html: which statistics share one, and their curves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stylegan_di.journal.records import Measured, mean, rounded, speed
from stylegan_di.metrics.table import metric as described

POINTS = 800  # of a curve


@dataclass(frozen=True)
class Chart:
    """Which statistics share a chart: those whose names match. `note` says how to read it; log: on a log scale."""

    title: str
    names: str
    note: str = ""
    log: bool = False


#: A statistic is drawn in the first that it matches; of a group in the pattern there is one chart for each value.
CHARTS = (
    Chart(r"Loss by noise level: \1", r"Loss/(.*)/sigma.*", "mean over the samples of each range of sigma", True),
    Chart(r"Gradient by noise level: \1", r"Gradient/(.*)/sigma.*", "mean over the samples of each range", True),
    Chart("Gradient norms", r"Gradient/.*(?<!_per_pixel)", "of all weights of a network together", True),
    Chart("Gradients in the images", r"Gradient/.*_per_pixel", "root mean square over the pixels", True),
    Chart("Discriminator: logits", r"Loss/scores/.*"),
    Chart("Discriminator: signs of logits", r"Loss/signs/.*", "1: all images are taken for real"),
    Chart("Regularisation", r"Loss/.*(?:penalty|reg)", "", True),
    Chart("Losses", r"Loss/.*"),
    Chart("Distance from the start", r"Progress/distance_from_start", "mean difference of the pictures; 2 is most"),
    Chart("Augmentation", r"Progress/augment", "probability p"),
    Chart("Skipped updates", r"Progress/skipped_updates", "since the start"),
    Chart("Images a second", r"images_per_second", "without the time of snapshots"),
    Chart("Memory", r"Resources/.*", "GiB of the first process"),
)
RESOURCES = {
    "Resources/cpu_mem_gb": "main memory",
    "Resources/peak_gpu_mem_gb": "GPU, peak",
    "Resources/peak_gpu_mem_reserved_gb": "GPU, reserved",
}


def metric_charts(measured: Measured) -> Iterator[dict[str, Any]]:
    """A chart of each metric's figures."""
    for metric, series in measured.items():
        names = list(series[-1][1])
        better = {True: "higher is better", False: "lower is better", None: ""}[described(metric).higher_is_better]
        curves = {name: [rounded(figures.get(name)) for _, figures in series] for name in names}
        yield _chart(metric, better, False, [kimg for kimg, _ in series], curves)


def statistic_charts(stats: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The charts of the statistics, in the order of CHARTS."""
    kept = stats[:: -(-len(stats) // POINTS)] if stats else []
    if stats and kept[-1] is not stats[-1]:
        kept = [*kept, stats[-1]]
    kimg = [mean(row, "Progress/kimg") or 0.0 for row in kept]
    curves: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for row in kept for name in row):
        curves[name] = [rounded(mean(row, name)) for row in kept]
    curves["images_per_second"] = [rounded(speed(row)) for row in kept]
    groups: dict[tuple[int, str], dict[str, list[float | None]]] = {}
    for name, values in sorted(curves.items(), key=lambda pair: pair[0].replace("<", "!")):
        for index, chart in enumerate(CHARTS):
            if found := re.fullmatch(chart.names, name):
                groups.setdefault((index, found.expand(chart.title)), {})[name] = values
                break
    for (index, title), drawn in sorted(groups.items()):
        shown = {_label(name): values for name, values in drawn.items() if any(values)}  # no curve of zeros and gaps
        if shown:
            yield _chart(title.replace("_", " "), CHARTS[index].note, CHARTS[index].log, kimg, shown)


def _chart(
    title: str, note: str, log: bool, kimg: Sequence[float], curves: Mapping[str, Sequence[float | None]]
) -> dict[str, Any]:
    drawn = [value for values in curves.values() for value in values if value is not None]
    return {
        "title": title, "note": note, "kimg": list(kimg), "log": log and bool(drawn) and min(drawn) > 0,
        "curves": [{"name": name, "values": list(values)} for name, values in curves.items()],
    }  # fmt: skip


def _label(name: str) -> str:
    """'fake score' of 'Loss/fake_score'; of a range of noise levels 'sigma < 0.2'."""
    if found := re.search(r"/sigma([<>]?)([\d.]+)-?([\d.]*)$", name):
        sign, low, high = found.groups()
        return f"sigma {sign} {low}" if sign else f"sigma {low} to {high}"
    if name in RESOURCES:
        return RESOURCES[name]
    return name.partition("/")[2].replace("scores/", "").replace("signs/", "").replace("_", " ") or "images/s"
