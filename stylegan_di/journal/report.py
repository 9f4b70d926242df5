"""report.html: what became of a run, on one page that opens from disk, without a network or a server.

The page is made of the run's folder alone: its options, stats.jsonl, metric-*.jsonl and grids of pictures. It is
written anew at each snapshot and at the end. Its charts are drawn by uPlot, which is written into it.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.untrusted import Budget, RefusedFileError, open_untrusted, read_json, untrusted
from stylegan_di.dnnlib.util import UserError, atomic_write, option_name
from stylegan_di.images import open_picture
from stylegan_di.journal.sinks import Sink
from stylegan_di.metrics.table import is_better
from stylegan_di.metrics.table import metric as described
from stylegan_di.options import options_of
from stylegan_di.presets import KIND_DEFAULTS

NAME = "report.html"
MOMENTS = 9  # pictures of so many snapshots are kept on the page
POINTS = 800  # of a curve
WIDTH = 1280  # pixels; wider grids are made smaller
MAX_LINES = 1 << 25  # bytes of a .jsonl file
MAX_OPTIONS = 1 << 20  # bytes of training_options.json
NO_DIFFERENCE = ("outdir", "desc")  # options that say nothing of a training


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


class Report(Sink):
    """Writes the page whenever all of a snapshot has been reported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pictures: dict[str, str] = {}  # by file

    def snapshot(self) -> None:
        self._write("")

    def close(self, ending: str) -> None:
        self._write(ending)

    def _write(self, ending: str) -> None:
        try:
            text = page(contents(self.folder, ending, self._pictures))
        except Exception as error:  # a folder may be somebody else's, and what its files raise must not end a training
            why = html.escape(f"{type(error).__name__}: {error}"[:300])
            text = f"<!doctype html><title>{NAME}</title><p>The files of this folder make no page ({why})."
        atomic_write(self.folder / NAME, text.encode())


def page(found: Mapping[str, Any]) -> str:
    """Returns the page of what `contents` returned."""
    data = json.dumps(found, allow_nan=False).replace("<", "\\u003c")  # no text in it can end its element

    def part(name: str) -> str:
        return data if name == "data.json" else (zoo.ASSETS / "report" / name).read_text(encoding="utf-8")

    return re.sub(r"\{\{([\w.-]+)\}\}", lambda match: part(match[1]), part("page.html"))


def contents(folder: Path, ending: str = "", pictures: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns what a run's page says.

    Args:
        folder: the run's.
        ending: 'complete', why the run ended early, or '' while it goes on.
        pictures: those encoded before, by file; new ones are added.
    """
    left_out: list[str] = []
    options, stats = read_options(folder), rows(folder / "stats.jsonl", left_out)
    measured = measurements(folder, options["metrics"], left_out)
    last = stats[-1] if stats else {}
    kimg = _mean(last, "Progress/kimg") or 0.0
    state = {"": "running", "complete": "complete"}.get(ending, "ended early")
    tone, verdict = judge(options, measured, kimg, "" if state != "ended early" else ending)
    facts = {
        "length": f"{kimg:g} of {options['kimg']:g} kimg",
        "time": _hours(_mean(last, "Timing/total_sec")),
        "speed": f"{_speed(last):.3g} images/s" if _speed(last) else "",
        "batch": f"{options['batch']} on {options['device']}",
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }
    return {
        "name": folder.name,
        "state": state,
        "tone": tone,
        "verdict": verdict,
        "facts": {name: text for name, text in facts.items() if text},
        "figures": _figures(measured),
        "pictures": list(_moments(folder, {} if pictures is None else pictures, left_out)),
        "charts": [*_metric_charts(measured), *_charts(stats)],
        "options": _options(options),
        "previous": previous(folder, options, measured, left_out),
        "left_out": left_out,
    }


# The run's files.

Measured = dict[str, list[tuple[float, dict[str, float]]]]  # by metric: kimg, and its figures by name


def read_options(folder: Path) -> dict[str, Any]:
    """Returns a run's options.

    Raises:
        UserError, OSError: if there are none that can be read.
    """
    path = folder / "training_options.json"
    with untrusted(str(path)), open_untrusted(path, MAX_OPTIONS) as (file, size):
        found = read_json(file.read(), Budget(size))
        if not isinstance(found, dict) or found.get("kind") not in KIND_DEFAULTS:
            raise ValueError("it holds no options of a run")
        known = {declared.name: declared.default for declared in options_of(TrainConfig)}
        return known | {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def rows(path: Path, left_out: list[str]) -> list[dict[str, Any]]:
    """Returns the lines of a .jsonl file; one that a crash left incomplete is left out.

    `left_out` gets a sentence about a file that is too large, or costs too much memory.
    """
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    try:
        with untrusted(str(path)), open_untrusted(path, MAX_LINES) as (file, size):
            budget = Budget(size)
            for line in file:
                with contextlib.suppress(ValueError):
                    row = read_json(line, budget)
                    if isinstance(row, dict):
                        found.append(row)
    except RefusedFileError as error:
        left_out.append(_left_out(error))
        return []
    return found


def _left_out(error: RefusedFileError) -> str:
    path = Path(error.source)
    return f"{path.parent.name}/{path.name} is not on this page: {error.found}."


def measurements(folder: Path, metrics: Sequence[str], left_out: list[str]) -> Measured:
    """Returns what was measured, before training (kimg 0) and at each snapshot; see `rows`."""
    found: Measured = {}
    for metric in metrics:
        for row in rows(folder / f"metric-{metric}.jsonl", left_out):
            kimg = re.search(r"(\d+)\.\w+$", str(row.get("snapshot_pkl")))
            results = row.get("results")
            figures = _numbers(results) if isinstance(results, dict) else {}
            if figures:
                found.setdefault(metric, []).append((float(kimg[1]) if kimg else 0.0, figures))
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _before(series: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """The figures before training; none where the metric was asked for later."""
    return series[0][1] if series[0][0] == 0 else {}


def _mean(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return _numbers(value).get("mean") if isinstance(value, dict) else None


def _speed(row: Mapping[str, Any]) -> float | None:
    seconds = _mean(row, "Timing/sec_per_kimg")
    return 1000 / seconds if seconds else None


# What is said.


def judge(options: Mapping[str, Any], measured: Measured, kimg: float, trouble: str) -> tuple[str, str]:
    """Returns 'good', 'bad' or 'neutral', and the verdict in a sentence or two.

    trouble: why the run ended early, '' if it did not.
    """
    early = f" The run ended early: {trouble.rstrip('.')}." if trouble else ""
    tone = "bad" if trouble else "neutral"
    if not options["metrics"]:
        return tone, "No metric was measured (--metrics=none): the pictures are all there is to judge by." + early
    first = options["metrics"][0]
    series = measured.get(first, [])
    name = next(iter(series[-1][1])) if series else first
    values = [(at, figures[name]) for at, figures in series if name in figures]
    if len(values) < 2:
        return tone, f"Training has begun; {first} is measured at each snapshot." + early
    (start, before), (at, now) = values[0], values[-1]
    kimg = kimg if round(kimg) == at else at
    since = f" since kimg {start:g}, where it was measured first" if start else ""
    course = f"{name} {_course(before, now)}{since}"
    best = values[1]
    for each in values[2:]:
        if is_better(first, each[1], best[1]):
            best = each
    if best is not values[-1] and best[1] != now:
        course += f" (its best was {_short(best[1])}, at kimg {best[0]:g})"
    for figure, old, new in _others(measured, first):
        if figure.endswith("recall"):
            course += f", {figure} {_course(old, new)}"
    judges = described(first).higher_is_better is not None and before != now
    better = judges and is_better(first, now, before)
    word = ("Better" if better else "Worse") if judges else "Measured"
    advice = " Take network-best." if judges and not better and is_better(first, best[1], before) else ""
    if judges and not trouble:
        tone = "good" if better else "bad"
    return tone, f"{word} after {kimg:g} kimg: {course}.{advice}{early}"


def _course(old: float, new: float) -> str:
    if new == old:
        return f"stayed at {_short(new)}"
    verb = "fell" if new < old else "rose" if new > old else "went"  # to no number
    return f"{verb} from {_short(old)} to {_short(new)}"


def _others(measured: Measured, first: str) -> Iterator[tuple[str, float, float]]:
    for metric, series in measured.items():
        if metric != first and len(series) > 1:
            for name, value in series[-1][1].items():
                if name in _before(series):
                    yield name, _before(series)[name], value


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3g}"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _figures(measured: Measured) -> list[dict[str, Any]]:
    """A row of the table of metrics for each figure: before, now, and whether it is better, where that can be told."""
    found = []
    for metric, series in measured.items():
        for name in series[-1][1]:
            before, now = _before(series).get(name), series[-1][1][name]
            trained = series[-1][0] > 0 or len(series) > 1
            row: dict[str, Any] = {"name": name, "before": _number(before), "now": _number(now) if trained else None}
            judged = trained and described(metric).higher_is_better is not None and not name.endswith("_std")
            if judged and before is not None and before != now:
                row["better"] = is_better(metric, now, before)
            found.append(row)
    return found


def _options(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every option of the run's kind; `own`: whether its value is not the default."""
    kind = options["kind"]
    found: list[dict[str, Any]] = [{"name": "--kind", "group": "Inputs", "value": kind, "own": True, "help": ""}]
    for declared in options_of(TrainConfig):
        if declared.kinds and kind not in declared.kinds:
            continue
        value, default = options[declared.name], KIND_DEFAULTS[kind].get(declared.name, declared.default)
        found.append({
            "name": option_name(declared.name), "group": declared.group, "value": _text(value),
            "own": value != default, "help": declared.help,
        })  # fmt: skip
    return found


def _text(value: Any) -> str:
    """An option's value as it is typed."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def previous(
    folder: Path, options: Mapping[str, Any], measured: Measured, left_out: list[str]
) -> dict[str, Any] | None:
    """Returns what differs from the last run before of the same GAN in the same outdir; None if there is none."""
    for other in sorted(folder.parent.iterdir(), key=lambda path: path.name, reverse=True):
        if other.name >= folder.name or not re.match(r"\d{5}-", other.name) or other.is_symlink():
            continue
        try:
            theirs = read_options(other)
        except (UserError, OSError):
            continue
        if _subject(theirs) != _subject(options):
            continue
        changes = [
            {"name": option_name(name), "then": _text(theirs[name]), "now": _text(options[name])}
            for name in options.keys() & theirs.keys() - set(NO_DIFFERENCE)
            if theirs[name] != options[name]
        ]
        then = {row["name"]: row for row in _figures(measurements(other, options["metrics"], left_out))}
        figures = [
            {"name": row["name"], "then": then[row["name"]]["now"], "now": row["now"]}
            for row in _figures(measured)
            if row["name"] in then and row["now"] is not None
        ]
        return {"name": other.name, "changes": sorted(changes, key=lambda row: row["name"]), "figures": figures}
    return None


def _subject(options: Mapping[str, Any]) -> tuple[str, str | None]:
    """What a run works on: its kind, and its GAN, else its teacher or its images."""
    of_di = options["gan_pkl"] or options["teacher"]
    return options["kind"], of_di if options["kind"] == "di" else options["data"]


# Pictures and curves.


def _moments(folder: Path, known: dict[str, str], left_out: list[str]) -> Iterator[dict[str, Any]]:
    """The grids of the start, of the newest snapshot, and of some in between: kimg and data URL; see `rows`."""
    paths = sorted(folder.glob("fakes*.png"))
    at_kimg = {int(path.stem[5:]): path for path in paths if path.stem[5:].isdigit()}
    start = folder / "fakes_init.png"
    if not start.is_file():
        return
    steps = sorted(at_kimg)
    wanted = {steps[round(i * (len(steps) - 1) / (MOMENTS - 2))] for i in range(MOMENTS - 1)} if steps else set()
    for kimg, path in [(0, start), *((kimg, at_kimg[kimg]) for kimg in sorted(wanted))]:
        if path.name not in known:
            try:
                known[path.name] = data_url(path)
            except RefusedFileError as error:
                left_out.append(_left_out(error))
                if path == start:
                    return
                continue
        yield {"kimg": kimg, "start": path == start, "src": known[path.name]}


def data_url(path: Path) -> str:
    """Returns the upper half of a grid, at most twice as wide as high, for the page; large ones as JPEG.

    Raises:
        RefusedFileError: see `open_picture`.
    """
    shown = open_picture(path)
    shown = shown.crop((0, 0, shown.width, min(shown.height, max(shown.width // 2, 1))))
    large = shown.width > WIDTH
    if large:
        shown = shown.resize((WIDTH, round(shown.height * WIDTH / shown.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "jpeg" if large else "png"
    shown.save(file, format=kind, **({"quality": 88} if large else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _metric_charts(measured: Measured) -> Iterator[dict[str, Any]]:
    for metric, series in measured.items():
        names = list(series[-1][1])
        better = {True: "higher is better", False: "lower is better", None: ""}[described(metric).higher_is_better]
        curves = {name: [_number(figures.get(name)) for _, figures in series] for name in names}
        yield _chart(metric, better, False, [kimg for kimg, _ in series], curves)


def _charts(stats: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The charts of the statistics, in the order of CHARTS."""
    kept = stats[:: -(-len(stats) // POINTS)] if stats else []
    if stats and kept[-1] is not stats[-1]:
        kept = [*kept, stats[-1]]
    kimg = [_mean(row, "Progress/kimg") or 0.0 for row in kept]
    curves: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(name for row in kept for name in row):
        curves[name] = [_number(_mean(row, name)) for row in kept]
    curves["images_per_second"] = [_number(_speed(row)) for row in kept]
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


def _number(value: float | None) -> float | None:
    """A figure with five digits; None of what JSON has not."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
