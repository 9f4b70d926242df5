"""report.html: what became of a run, on one page that opens from disk, without a network or a server.

The page is made of the run's folder alone: its options, stats.jsonl, metric-*.jsonl and grids of pictures. It is
written anew at each snapshot and at the end. Its charts are drawn by uPlot, which is written into it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.untrusted import RefusedFileError
from stylegan_di.dnnlib.util import UserError, atomic_write, option_name
from stylegan_di.images import open_picture
from stylegan_di.journal.charts import metric_charts, statistic_charts
from stylegan_di.journal.records import Measured, mean, measurements, not_shown, read_options, rounded, rows, speed
from stylegan_di.journal.sinks import Sink
from stylegan_di.metrics.table import is_better
from stylegan_di.metrics.table import metric as described
from stylegan_di.options import options_of, typed
from stylegan_di.presets import KIND_DEFAULTS

NAME = "report.html"
MOMENTS = 9  # pictures of so many snapshots are kept on the page
WIDTH = 1280  # pixels; wider grids are made smaller
NO_DIFFERENCE = ("outdir", "desc")  # options that say nothing of a training


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
    kimg = mean(last, "Progress/kimg") or 0.0
    state = {"": "running", "complete": "complete"}.get(ending, "ended early")
    tone, verdict = judge(options, measured, kimg, "" if state != "ended early" else ending)
    facts = {
        "length": f"{kimg:g} of {options['kimg']:g} kimg",
        "time": _hours(mean(last, "Timing/total_sec")),
        "speed": f"{speed(last):.3g} images/s" if speed(last) else "",
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
        "charts": [*metric_charts(measured), *statistic_charts(stats)],
        "options": _options(options),
        "previous": previous(folder, options, measured, left_out),
        "left_out": left_out,
    }


def _before(series: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """The figures before training; none where the metric was asked for later."""
    return series[0][1] if series[0][0] == 0 else {}


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
    """The figures of the other metrics that were measured before training and since: name, before, now."""
    for metric, series in measured.items():
        if metric != first and len(series) > 1:
            before = _before(series)
            yield from ((name, before[name], value) for name, value in series[-1][1].items() if name in before)


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
            row: dict[str, Any] = {"name": name, "before": rounded(before), "now": rounded(now) if trained else None}
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
            "name": option_name(declared.name), "group": declared.group, "value": typed(value),
            "own": value != default, "help": declared.help,
        })  # fmt: skip
    return found


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
            {"name": option_name(name), "then": typed(theirs[name]), "now": typed(options[name])}
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


# Pictures.


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
                left_out.append(not_shown(error))
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
