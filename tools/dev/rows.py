"""Runs the rows of a study, several at a time, and keeps what they gave as lines of JSON.

A study is a module of tools/dev with ROWS, each a few command lines and the network that they leave, which is judged:
study.py (refinement), teacher_study.py, generator_study.py. Rows and seeds that are there already are not run again.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import importlib
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import Seeds, help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.ops import build

ROOT = Path(__file__).resolve().parents[2]
METRICS = "fd_fashion,pr_fashion,dc_fashion,cr_fashion,fd_effnet,pr_effnet,dc_effnet,kid_effnet,spectrum,texture"
NEWEST = "{out}/*/network-snapshot-*.pkl"
ANOTHER = re.compile(r"\{row:([\w.-]+?)\}")


@dataclass(frozen=True)
class Row:
    """A row of a study.

    commands: lines such as "train.py --kind=di --seed={seed} --outdir={out}"; of {out}, the row's own folder, {seed},
        {device}, {datasets}, the folder of the data sets, {network}, the row's own so far, and {row:NAME}, that of
        another row with this seed.
    network: what is judged, a shipped name or a pattern whose last match counts; "": nothing is judged.
    metrics: what it is judged by, options of calc_metrics.py; "": nothing, it is there for other rows.
    seeded: whether the seed matters; else the row is run once, as seed 0.
    figures: patterns of JSON files of the commands, whose numbers are kept too: pixel_distance, before_fd_fashion.
    """

    commands: tuple[str, ...]
    network: str = NEWEST
    metrics: str = f"--metrics={METRICS} --data={{datasets}}/fashion-16-test.zip --num=10000"
    seeded: bool = True
    figures: tuple[str, ...] = ()

    def needs(self) -> set[str]:
        return set(ANOTHER.findall(" ".join((*self.commands, self.network, self.metrics))))


@dataclass(frozen=True)
class Place:
    """Where rows are run."""

    study: str
    outdir: Path
    datasets: Path
    device: str
    alone: bool  # no other row at the same time: samples of teachers are drawn anew, so that their time counts

    def rows(self) -> dict[str, Row]:
        found: dict[str, Row] = importlib.import_module(f"tools.dev.{self.study}").ROWS
        return found

    def network(self, name: str, seed: int) -> str:
        """The network of a row that has been run."""
        row = self.rows()[name]
        folder = self.outdir / f"{name}-{seed if row.seeded else 0}"
        pattern = self.filled(row.network, folder, seed)
        return max(glob.glob(pattern), default=pattern)

    def filled(self, line: str, folder: Path, seed: int) -> str:
        line = ANOTHER.sub(lambda match: self.network(match[1], seed), line)
        newest = max(glob.glob(NEWEST.format(out=folder)), default="")
        return line.format(out=folder, seed=seed, device=self.device, datasets=self.datasets, network=newest)


def called(line: str) -> str:
    """Runs a command line of the repository in this process and returns what it printed.

    Raises:
        UserError: it failed.
    """
    script, *arguments = shlex.split(line)
    name = {"calc_metrics.py": "metrics"}.get(script, Path(script).stem)
    command = importlib.import_module(f"stylegan_di.commands.{name}").main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            command(arguments, standalone_mode=False)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise UserError(f"{line} ended with {end.code}: {printed.getvalue()[-800:]}") from None
        except Exception as error:  # whatever it is, it travels to the parent process as a text
            raise UserError(f"{line}: {error!r}") from None
    return printed.getvalue()


def built(device: str) -> str:
    """Builds the native kernels for a device, and says which these are, or why there are none."""
    try:
        return f"native kernels: {build.build(build.recipe(device.split(':')[0]))}"
    except UserError as error:
        return f"no native kernels: {error}"


def _processor() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measured(place: Place, name: str, seed: int) -> dict[str, Any]:
    """Runs and judges a row. `seconds` are the processor's on a CPU, else those of the clock, beside other rows."""
    row = place.rows()[name]
    folder = place.outdir / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    if place.alone:
        shutil.rmtree(place.outdir / "cache" / "teacher-samples", ignore_errors=True)
    result: dict[str, Any] = {"row": name, "seed": seed, "date": time.strftime("%Y-%m-%d"), "device": place.device}
    clock = _processor if place.device == "cpu" else time.monotonic
    before = clock()
    for line in row.commands:
        called(place.filled(line, folder, seed))
    for pattern in row.figures:
        for path in glob.glob(place.filled(pattern, folder, seed)):
            result |= numbers_of(json.loads(Path(path).read_text()))
    if row.commands:
        result |= {"seconds": round(clock() - before, 1), "commands": list(row.commands)}
    if row.network and row.metrics:
        metrics = place.filled(row.metrics, folder, seed)
        printed = called(f"calc_metrics.py --network={place.network(name, seed)} --device={place.device} {metrics}")
        for line in printed.splitlines():
            if line.startswith("{"):
                result |= json.loads(line)["results"]
    gc.collect()
    return result


def numbers_of(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of a JSON file by name, those in a dict of it with that dict's name before their own."""
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    for outer, inner in found.items():
        if isinstance(inner, dict):
            numbers |= {f"{outer}_{name}": value for name, value in inner.items() if isinstance(value, float)}
    return numbers


def read_results(path: Path) -> list[dict[str, Any]]:
    """Returns what a study's rows gave, from its lines of JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def pending(rows: dict[str, Row], names: Sequence[str], seeds: Sequence[int], known: list[dict[str, Any]]) -> list[Any]:
    """What is to be run, (name, seed), seed by seed, with the rows that others need before them."""
    done = {(result["row"], result["seed"]) for result in known}
    found: list[tuple[str, int]] = []

    def add(name: str, seed: int) -> None:
        task = (name, seed if rows[name].seeded else 0)
        if task in done or task in found:
            return
        for other in sorted(rows[name].needs()):
            add(other, seed)
        found.append(task)

    for seed in seeds:
        for name in names:
            add(name, seed)
    return found


def run(place: Place, tasks: list[tuple[str, int]], workers: int, limit: float) -> Iterator[dict[str, Any]]:
    """Yields results as they come; a row that fails has `error`, and those that need it are left out."""
    rows, ends = place.rows(), time.monotonic() + limit
    waiting, running, failed = list(tasks), dict[Future[Any], tuple[str, int]](), set[tuple[str, int]]()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    while (waiting or running) and time.monotonic() < ends:
        for task in list(waiting):
            needs = {(other, task[1] if rows[other].seeded else 0) for other in rows[task[0]].needs()}
            if needs & failed:
                failed.add(task)
                waiting.remove(task)
            elif len(running) < workers and not needs & {*waiting, *running.values()}:
                running[pool.submit(measured, place, *task)] = task
                waiting.remove(task)
        for future in wait(running, max(0, ends - time.monotonic()), FIRST_COMPLETED).done:
            task = running.pop(future)
            if error := future.exception():
                failed.add(task)
                yield {"row": task[0], "seed": task[1], "error": str(error)}
            else:
                yield future.result()
    for process in pool._processes.values() if running else ():
        process.kill()  # a training would take SIGTERM as the wish to save its state
    pool.shutdown(wait=not running, cancel_futures=True)


@click.command(help=help_of(__doc__))
@click.argument("study")
@click.option("--rows", default="", help="Comma-separated.  [default: all]")
@click.option("--seeds", type=Seeds(), default="1,2,3", show_default=True, help="Seeds of the trainings.")
@click.option("--results", type=click.Path(path_type=Path), help="[default: docs/measurements/STUDY.jsonl]")
@click.option("--outdir", type=click.Path(path_type=Path), default="runs/study", show_default=True)
@click.option(
    "--datasets",
    type=click.Path(path_type=Path),
    default="datasets",
    show_default=True,
    help="The folder of Fashion-MNIST's data sets (tools/dev/make_fashion_models.sh makes them).",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Rows at a time.")
@click.option("--limit", type=float, default=1e9, help="Seconds after which the rest is left.  [default: none]")
@user_errors
def main(
    study: str, rows: str, seeds: list[int], results: Path | None, outdir: Path, datasets: Path, device: str,
    workers: int, limit: float,
) -> None:  # fmt: skip
    place = Place(study, outdir.resolve(), datasets.resolve(), device, workers == 1)
    try:
        known_rows = place.rows()
    except ModuleNotFoundError as error:
        raise UserError(f"STUDY={study}: there is no tools/dev/{study}.py") from error
    names = [name for name in rows.split(",") if name] or list(known_rows)
    if unknown := [name for name in names if name not in known_rows]:
        raise UserError(f"--rows={unknown[0]}: accepted are {', '.join(known_rows)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "DNNLIB_CACHE_DIR": str(place.outdir / "cache")}  # the workers' too
    results = results or ROOT / f"docs/measurements/{study}.jsonl"
    known = read_results(results) if results.exists() else []
    click.echo(built(device))  # now, so that no row's time holds that
    for result in run(place, pending(known_rows, names, seeds, known), workers, limit):
        click.echo(json.dumps(result))
        if "error" not in result:
            with open(results, "a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
