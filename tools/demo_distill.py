"""The demo of distillation: distils the shipped teacher to one step, and sets its figures beside the teacher's own.

    python tools/demo_distill.py --seed=0

The teacher is drawn in 8 evaluations, by DPM-Solver++.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import help_of, user_errors

ROOT = Path(__file__).resolve().parent.parent
TEACHER = "fashion-teacher.pkl"
SAMPLES = 10000
METRICS = "fd_fashion,pr_fashion"
STEPS = 8  # of DPM-Solver++, each one evaluation of the teacher


def run(*command: str) -> None:
    """Prints the command line of one of the project's scripts and runs it."""
    click.echo("python " + " ".join(command))
    subprocess.run([sys.executable, ROOT / command[0], *command[1:]], check=True)


@click.command(help=help_of(__doc__))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--outdir", default="runs", show_default=True, help="Folder in which the run's folder is made.")
@user_errors
def main(seed: int, outdir: str) -> None:
    run("train.py", "--kind=di", f"--teacher={TEACHER}", f"--seed={seed}", f"--outdir={outdir}")
    folder = max(Path(outdir).glob("*-di-*"), key=lambda path: path.stat().st_mtime)
    run("calc_metrics.py", f"--network={TEACHER}", "--solver=dpmpp", f"--steps={STEPS}", f"--metrics={METRICS}",
        f"--num={SAMPLES}", f"--seed={seed}", f"--outdir={folder}")  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    teacher: dict[str, float] = {}
    for name in METRICS.split(","):
        line = (folder / f"metric-{name}.jsonl").read_text().splitlines()[-1]
        teacher |= json.loads(line)["results"]
    click.echo(f"{'metric':<24s}{f'teacher, {STEPS} steps':>20s}{'student, 1 step':>20s}")
    for name, value in result["after"].items():
        click.echo(f"{name:<24s}{teacher[name]:>20.4f}{value:>20.4f}")


if __name__ == "__main__":
    main()
