"""Judges the training states of runs of the study, for curves of the figures against time.

    python tools/dev/rows.py study --rows=recipe,sim --seeds=1 --outdir=runs/study
    python tools/dev/curves.py runs/study/recipe-1 runs/study/sim-1 --data=datasets/fashion-16-test.zip
    python tools/dev/pictures.py quality

A run keeps its last three states; each holds the average of the weights so far. The learning rate has not yet decayed
in an early state, so it is not what a shorter run would give.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.runs import statefile
from stylegan_di.snapshots.checkpoint import load_generator
from tools.dev.rows import ROOT

METRICS = ("fd_fashion", "pr_fashion", "fd_effnet")
AVERAGE = "ema."


def states(folder: Path) -> Iterator[tuple[float, Generator]]:
    """Yields the share of a run that a state was written after, and the state's average, for all but the last state.

    Args:
        folder: of a row, with one run in it.

    Raises:
        UserError: there is no snapshot in it.
    """
    snapshot = max(folder.glob("*/network-snapshot-*.pkl"), default=None)
    if snapshot is None:
        raise UserError(f"{folder}: there is no snapshot; give the folder of a row that has been run")
    found = [statefile.load_state(path) for path in statefile.complete_states(snapshot.parent)]
    seen = [state.values["state"]["cur_nimg"] for state in found]
    for state, nimg in sorted(zip(found, seen, strict=True), key=lambda pair: pair[1]):
        if nimg < max(seen):
            generator = load_generator(str(snapshot))
            names = [name for name in state.tensors if name.startswith(AVERAGE)]
            generator.load_state_dict({name.removeprefix(AVERAGE): state.tensors[name] for name in names})
            yield nimg / max(seen), generator


@click.command(help=help_of(__doc__))
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", required=True, metavar="ZIP", help="The test images.")
@click.option("--num", type=click.IntRange(2), default=10000, show_default=True, help="Samples.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=ROOT / "docs/measurements/curves.jsonl",
    help="[default: docs/measurements/curves.jsonl]",
)
@user_errors
def main(folders: tuple[Path, ...], data: str, num: int, results: Path) -> None:
    evaluator = Evaluator(METRICS, data, num)
    for folder in folders:
        row, _, seed = folder.name.rpartition("-")
        for share, generator in states(folder):
            result: dict[str, Any] = {"row": row, "seed": int(seed), "share": round(share, 3), **evaluator(generator)}
            click.echo(json.dumps(result))
            with open(results, "a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
