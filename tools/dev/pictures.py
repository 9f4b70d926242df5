"""Draws the pictures of the benchmark page from the figures that are kept beside it.

    python tools/dev/pictures.py quality
    python tools/dev/pictures.py recall
    python tools/dev/pictures.py speed
    python tools/dev/pictures.py refiners
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from tools.dev.scaling import two_panels

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "measurements"
DISTANCES = {"fd_fashion": "FD, the classifier", "fd_effnet": "FD, EfficientNet"}
MODES = {"pr_fashion_recall": "recall, the classifier", "pr_fashion_precision": "precision, the classifier"}
#: Rows of the study that are drawn, as the legend names them.
CURVES = {
    "recipe": "sid: make demo", "refiner": "refiner", "ikl": "ikl, plain", "ikl-mended": "ikl", "sim": "sim",
    "critic-mended": "ikl + critic", "critic-alone-mended": "critic alone", "sid-critic": "sid + critic",
    "own-d": "ikl + the GAN's D", "hybrid-real": "the same, real images", "gan-continued": "GAN continued",
    "one-step-clipped": "one step of the teacher",
}  # fmt: skip
DRAWING = 0.0057  # seconds of one thread for a sample of the shipped teacher, in 8 evaluations
SPEEDS = {"benchmark-cpu.json": "one CPU core, float32", "gpu-h200.json": "one H200, bf16"}


@click.group(help=help_of(__doc__))
def main() -> None:
    pass


@main.command(help="FD against the processor's seconds, of the main rows of the study, by both judges.")
@click.option("--out", type=click.Path(path_type=Path), default=FIGURES / "quality.svg")
@user_errors
def quality(out: Path) -> None:
    draw_curves(DISTANCES, out)


@main.command(help="Recall and precision against the processor's seconds, of the main rows of the study.")
@click.option("--out", type=click.Path(path_type=Path), default=FIGURES / "recall.svg")
@user_errors
def recall(out: Path) -> None:
    draw_curves(MODES, out)


def draw_curves(metrics: Mapping[str, str], out: Path) -> None:
    """Draws two metrics, with their titles, of the rows of CURVES."""
    files = ("study.jsonl", "curves.jsonl")
    results, states = ([json.loads(line) for line in _read(name).splitlines()] for name in files)
    with two_panels(out) as panels:
        for axes, (metric, title) in zip(panels, metrics.items(), strict=True):
            for name, level in levels(results, metric).items():
                axes.axhline(level, color="0.6", linestyle="--")
                axes.annotate(name, (0, level), xytext=(4, -10), textcoords="offset points", color="0.4", fontsize=8)
            for index, (row, label) in enumerate(CURVES.items()):
                for seconds, values in curves(results, states, row, metric):
                    style = {"color": f"C{index % 10}", "marker": "os"[index // 10], "markersize": 4}
                    axes.plot(seconds, values, label=label, **style)
                    label = "_"  # the legend names a row once
            axes.set(xlim=(0, None), xlabel="processor time, s", ylabel=title)
            if metrics is DISTANCES:
                axes.set(ylim=(0, None))
            axes.grid(alpha=0.3)
        panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    click.echo(f"written: {out}")


@main.command(help="FD and recall of refiners against how far they move the GAN's images.")
@click.option("--out", type=click.Path(path_type=Path), default=FIGURES / "refiners.svg")
@user_errors
def refiners(out: Path) -> None:
    results = [json.loads(line) for line in _read("generator_study.jsonl").splitlines()]
    with two_panels(out) as panels:
        for axes, metric, title in zip(panels, ("fd_fashion", "pr_fashion_recall"), ("FD", "recall"), strict=True):
            for frozen, label in ((False, "both are trained"), (True, "the GAN is frozen")):
                found = sweep(results, metric, frozen)
                axes.plot([x for x, _, _ in found], [y for _, y, _ in found], "o-", label=label)
                for x, y, sigma in found:
                    axes.annotate(f"{sigma:g}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
            axes.set(xlim=(0, None), ylim=(0, None), ylabel=title,
                     xlabel="mean absolute distance from the GAN's images, in [-1, 1]")  # fmt: skip
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    click.echo(f"written: {out}")


@main.command(help="Images a second of each row of the benchmark, ours and the plain way.")
@click.option("--out", type=click.Path(path_type=Path), default=FIGURES / "speed.svg")
@user_errors
def speed(out: Path) -> None:
    with two_panels(out) as panels:
        for axes, (file, title) in zip(panels, SPEEDS.items(), strict=True):
            names, ours, plain = zip(*rates(json.loads(_read(file))), strict=True)
            places = range(len(names), 0, -1)
            axes.barh([place + 0.2 for place in places], ours, 0.38, label="ours")
            axes.barh([place - 0.2 for place in places], plain, 0.38, label="the plain way", color="0.7")
            for place, own, other in zip(places, ours, plain, strict=True):
                axes.annotate(f"{own / other:.1f}x", (max(own, other), place), xytext=(4, -3),
                              textcoords="offset points", fontsize=8)  # fmt: skip
            axes.set(xscale="log", xlabel=f"images / s, {title}", yticks=list(places))
            axes.set_yticklabels(names, fontsize=8)
            axes.margins(x=0.12)
            axes.legend(loc="upper right", bbox_to_anchor=(1, 1.12), ncols=2, fontsize=8, frameon=False)
    click.echo(f"written: {out}")


def curves(
    results: list[dict[str, Any]], states: list[dict[str, Any]], row: str, metric: str
) -> list[tuple[list[float], list[float]]]:
    """Seconds and metric of each of a row's seeds: its states, if they were judged, and its end.

    The training begins when the teacher's samples, if it has some, are drawn.
    """
    found = []
    for end in (result for result in results if result["row"] == row):
        samples = re.search(r"--data=teacher:(\d+)", " ".join(end.get("commands", ())))
        drawn = DRAWING * int(samples[1]) if samples else 0.0
        own = [(drawn + state["share"] * (end["seconds"] - drawn), state[metric])
               for state in states if (state["row"], state["seed"]) == (row, end["seed"])]  # fmt: skip
        seconds, values = zip(*sorted([*own, (end["seconds"], end[metric])]), strict=True)
        found.append((list(seconds), list(values)))
    return found


def sweep(results: list[dict[str, Any]], metric: str, frozen: bool) -> list[tuple[float, float, float]]:
    """Distance from the GAN's images, metric and sigma_init of each refiner, by sigma_init."""
    pattern = re.compile(r"refiner-([0-9.]+)" + ("-frozen" if frozen else ""))
    found = [(result["pixel_distance"], result[metric], float(match[1]))
             for result in results if (match := pattern.fullmatch(result["row"]))]  # fmt: skip
    return sorted(found, key=lambda point: point[2])


def levels(results: list[dict[str, Any]], metric: str) -> dict[str, float]:
    """The metric of the rows that train nothing: the GAN before, and the teacher."""
    return {result["row"]: result[metric] for result in results if result["row"] in ("before", "teacher")}


def rates(report: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, our images a second and the plain way's: of a report's rows, and of whole steps as CUDA graphs."""
    rows = report.get("benchmark-bf16", report)["rows"]
    found = [(row["name"], row["images_per_second"], row["images_per_second"] / row["ratio"])
             for row in rows if not row["name"].startswith(("fused FIR", "Frechet"))]  # fmt: skip
    steps = {row["row"]: row["images/s"] for part in ("step", "graphs") for row in report.get(part, {}).get("rows", ())}
    for kind in ("StyleGAN2", "EDM student"):
        if graph := steps.get(f"{kind}, bf16, one CUDA graph"):
            name = f"Diff-Instruct step, cifar, {kind}"
            found = [row for row in found if row[0] != name]
            found.append((f"{name}, one CUDA graph", graph, steps[f"{kind}, bf16, plain"]))
    return found


def _read(name: str) -> str:
    path = FIGURES / name
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; the page of measurements says which command makes it")
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
