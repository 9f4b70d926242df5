"""Runs rows of the study of refinement (docs/measurements/study.md), one after the other, and keeps what they gave.

    python tools/dev/study.py --rows=before,teacher
    python tools/dev/study.py --rows=ikl,ikl-mended --seeds=1,2,3
    python tools/dev/study.py --table

A row is a training with the recipe of the demo but for its own options, on one thread, judged by both judges at 10,000
samples. Each result is a line of JSON in --results. Rows and seeds that are there already are not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import Seeds, user_errors
from stylegan_di.dnnlib.util import UserError

ROOT = Path(__file__).resolve().parents[2]
METRICS = "fd_fashion,pr_fashion,dc_fashion,fd_effnet,pr_effnet,dc_effnet,kid_effnet,spectrum,texture"
FEATURES = ("--critic=features", "--data=teacher:10000")
PLAIN = ("--whitening=0", "--clip=false")
MENDED = ("--whitening=1", "--clip=true")
#: Name -> the options of train.py besides the recipe's; None: nothing is trained, the file is judged.
ROWS: dict[str, tuple[str, ...] | None] = {
    "before": None,
    "teacher": None,
    "ikl": ("--kimg=44", *PLAIN),
    "ikl-whitened": ("--kimg=44", "--whitening=1", "--clip=false"),
    "ikl-clipped": ("--kimg=44", "--whitening=0", "--clip=true"),
    "ikl-mended": ("--kimg=44", *MENDED),
    "ikl-mended-one-noise": ("--kimg=44", "--one-noise=true", *MENDED),
    "sid": ("--kimg=26", "--divergence=sid", *PLAIN),
    "sid-mended": ("--kimg=26", "--divergence=sid", *MENDED),
    "sid-mended-33": ("--kimg=33", "--divergence=sid", *MENDED),
    "critic": ("--kimg=28", *FEATURES, *PLAIN),
    "critic-mended": ("--kimg=28", *FEATURES, *MENDED),
    "critic-alone": ("--kimg=60", "--divergence=none", *FEATURES, *PLAIN),
    "critic-alone-mended": ("--kimg=60", "--divergence=none", *FEATURES, *MENDED),
    "refiner": ("--kimg=28", "--student=refiner", *PLAIN),
    "refiner-mended": ("--kimg=28", "--student=refiner", *MENDED),
    "ikl-mended-long": ("--kimg=132", *MENDED),
}
FILES = {"before": ("fashion-gan.pkl",), "teacher": ("fashion-teacher.pkl", "--solver=dpmpp")}
COLUMNS = {
    "FD": "fd_fashion", "precision": "pr_fashion_precision", "recall": "pr_fashion_recall",
    "coverage": "dc_fashion_coverage", "FD (2)": "fd_effnet", "precision (2)": "pr_effnet_precision",
    "recall (2)": "pr_effnet_recall", "coverage (2)": "dc_effnet_coverage", "KID (2)": "kid_effnet",
    "octave 3": "spectrum_3", "octave 4": "spectrum_4", "detail": "texture_detail", "black": "texture_black",
}  # fmt: skip


def run(script: str, *arguments: str) -> str:
    """Runs a script of the repository on one thread and returns what it printed.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def judged(network: Path | str, data: Path, *options: str) -> dict[str, float]:
    """All figures of a network."""
    printed = run("calc_metrics.py", f"--network={network}", f"--data={data}", f"--metrics={METRICS}",
                  "--num=10000", "--device=cpu", *options)  # fmt: skip
    found: dict[str, float] = {}
    for line in printed.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)["results"]
    return found


def measured(row: str, seed: int, data: Path, outdir: Path) -> dict[str, Any]:
    """Trains and judges a row with a seed; `seconds` are the processor's, drawing the teacher's samples included."""
    result: dict[str, Any] = {"row": row, "seed": seed, "date": time.strftime("%Y-%m-%d")}
    options = ROWS[row]
    if options is None:
        name, *rest = FILES[row]
        return result | judged(name, data, *rest)
    folder = outdir / f"{row}-{seed}"
    shutil.rmtree(outdir / "cache" / "teacher-samples", ignore_errors=True)  # so that drawing them counts
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = ("--kind=di", "--gan-pkl=fashion-gan.pkl", "--metrics=none", "--device=cpu", "--snap=100")
    run("train.py", *arguments, f"--seed={seed}", f"--outdir={folder}", *options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result["seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    (network,) = folder.glob("*/network-snapshot-*.pkl")
    return result | {"options": list(options)} | judged(network, data)


def table(results: list[dict[str, Any]]) -> str:
    """A line of Markdown a row: the mean over its seeds, +- half the range where there are several."""
    lines = ["| row | seeds | s | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in ROWS:
        own = [result for result in results if result["row"] == row]
        if not own:
            continue
        cells = [row, ", ".join(str(result["seed"]) for result in own), _cell([r.get("seconds") for r in own], 0)]
        cells += [_cell([result.get(name) for result in own], 1 if "FD" in title or title == "detail" else 3)
                  for title, name in COLUMNS.items()]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" +- {(max(known) - min(known)) / 2:.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option("--rows", default="", help=f"Comma-separated, out of {', '.join(ROWS)}.")
@click.option("--seeds", type=Seeds(), default="1,2,3", show_default=True, help="Seeds of the trainings.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default="datasets/fashion-16-test.zip",
    show_default=True,
    help="The test images (tools/dev/make_fashion_models.sh makes them).",
)
@click.option("--outdir", type=click.Path(path_type=Path), default="runs/study", show_default=True)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=ROOT / "docs/measurements/study.jsonl",
    help="Where results are kept.  [default: docs/measurements/study.jsonl]",
)
@click.option("--table", "show", is_flag=True, help="Print the table of all results.")
@user_errors
def main(rows: str, seeds: list[int], data: Path, outdir: Path, results: Path, show: bool) -> None:
    names = [name for name in rows.split(",") if name]
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"--rows={unknown[0]}: accepted are {', '.join(ROWS)}")
    os.environ["DNNLIB_CACHE_DIR"] = str(outdir.resolve() / "cache")
    if names:
        run("tools/doctor.py")  # builds the native kernels, so that no row's time holds that
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in seeds:
        for row in names:
            own = 0 if ROWS[row] is None else seed
            if any((result["row"], result["seed"]) == (row, own) for result in known):
                continue
            found = measured(row, own, data, outdir)
            known.append(found)
            with open(results, "a") as file:
                file.write(json.dumps(found) + "\n")
            click.echo(json.dumps(found))
    if show:
        click.echo(table(known))


if __name__ == "__main__":
    main()
