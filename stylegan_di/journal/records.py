"""Reads what a run's folder holds of it: its options, stats.jsonl and metric-*.jsonl. The folder may be anybody's."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.untrusted import Budget, RefusedFileError, open_untrusted, read_json, read_json_file, untrusted
from stylegan_di.options import options_of
from stylegan_di.presets import KIND_DEFAULTS

MAX_LINES = 1 << 25  # bytes of a .jsonl file
MAX_OPTIONS = 1 << 20  # bytes of training_options.json

Measured = dict[str, list[tuple[float, dict[str, float]]]]  # by metric: kimg, and its figures by name


def read_options(folder: Path) -> dict[str, Any]:
    """Returns a run's options.

    Raises:
        UserError, OSError: if there are none that can be read.
    """
    path = folder / "training_options.json"
    with untrusted(str(path)):
        found = read_json_file(path, MAX_OPTIONS)
        if not isinstance(found, dict) or found.get("kind") not in KIND_DEFAULTS:
            raise ValueError("it holds no options of a run")
        known = {declared.name: declared.default for declared in options_of(TrainConfig)}
        return known | {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def rows(path: Path, left_out: list[str]) -> list[dict[str, Any]]:
    """Returns the lines of a .jsonl file; one that a crash left incomplete is left out.

    `left_out` gets a sentence about a file that is too large, or costs too much memory.
    """
    if not path.is_file():
        return []
    try:
        with untrusted(str(path)), open_untrusted(path, MAX_LINES) as (file, size):
            budget = Budget(size)
            found = [_row(line, budget) for line in file]
    except RefusedFileError as error:
        left_out.append(not_shown(error))
        return []
    return [row for row in found if isinstance(row, dict)]


def _row(line: bytes, budget: Budget) -> Any:
    with contextlib.suppress(ValueError):
        return read_json(line, budget)
    return None


def not_shown(error: RefusedFileError) -> str:
    """Says that a file is not on the page, and why."""
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


def mean(row: Mapping[str, Any], name: str) -> float | None:
    """Returns the mean of a statistic in a row of stats.jsonl; None where it has none."""
    value = row.get(name)
    return _numbers(value).get("mean") if isinstance(value, dict) else None


def speed(row: Mapping[str, Any]) -> float | None:
    """Returns the images a second of a row, without the time of snapshots."""
    seconds = mean(row, "Timing/sec_per_kimg")
    return 1000 / seconds if seconds else None


def rounded(value: float | None) -> float | None:
    """A figure with five digits; None of what JSON has not."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
