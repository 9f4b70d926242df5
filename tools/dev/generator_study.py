"""The study of generators (docs/measurements/generators.md): its rows, and the table of what they gave.

    python tools/dev/rows.py generator_study --rows=refiner-0.3,refiner-0.3-frozen --seeds=1
    python tools/dev/generator_study.py --rows=refiner

A row is a training with the recipe of the shipped models but for its own options.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from tools.dev.rows import METRICS, Row
from tools.dev.study import table_command

SIGMAS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.5)
TEACHER = "--teacher=fashion-teacher.pkl"
JUDGE = Row.metrics.replace(METRICS, "fd_fashion,pr_fashion,dc_fashion,spectrum,texture")


def trained(options: str, *then: str) -> Row:
    """A training with the recipe of the shipped models but for these options, and command lines that follow it."""
    fixed = "train.py --kind=di --metrics=none --snap=100 --device={device} --seed={seed} --outdir={out}"
    return Row((f"{fixed} {options}", *then), metrics=JUDGE, figures=("{out}/compare.json",))


def refiner(options: str) -> Row:
    """A refiner, and how far it moves the GAN's images."""
    moved = "compare.py fashion-gan.pkl {network} --num=2560 --psi=none --device={device} --outdir={out}"
    return trained(f"--gan-pkl=fashion-gan.pkl --student=refiner --kimg=8 {options}", moved)


def untrained(options: str) -> Row:
    """The figures before the first step, as before_fd_fashion."""
    start = "train.py --kind=di --kimg=0.032 --batch=32 --device={device} --seed={seed} --outdir={out}"
    return Row((f"{start} {options}",), network="", figures=("{out}/*/result.json",))


ROWS = {
    "gan": Row((), "fashion-gan.pkl", JUDGE, seeded=False),
    "teacher": Row((), "fashion-teacher.pkl", f"--solver=dpmpp {JUDGE}", seeded=False),
    "refiner-1.0-plain": refiner("--clip=false"),
    "refiner-1.0-whitened": refiner("--whitening=1"),
    "refiner-1.0-whitened-plain": refiner("--whitening=1 --clip=false"),
}
ROWS["refiner-1.0-both-judges"] = Row((), "{row:refiner-1.0}")
for sigma in SIGMAS:
    ROWS[f"refiner-{sigma}"] = refiner(f"--sigma-init={sigma}")
    ROWS[f"refiner-{sigma}-frozen"] = refiner(f"--sigma-init={sigma} --freeze=generator")
    ROWS[f"refiner-{sigma}-start"] = untrained(f"--gan-pkl=fashion-gan.pkl --student=refiner --sigma-init={sigma}")
for steps in (1, 2, 4):
    ROWS[f"steps-{steps}"] = trained(f"{TEACHER} --student-steps={steps} --kimg=12 --clip=false")
    ROWS[f"steps-{steps}-clipped"] = trained(f"{TEACHER} --student-steps={steps} --kimg=12 --clip=true --clip-return=0")
    ROWS[f"steps-{steps}-start"] = untrained(f"{TEACHER} --student-steps={steps}")
for student in ("decoder", "flow", "radiance"):
    ROWS[student] = trained(f"{TEACHER} --student={student} --kimg=24")
    ROWS[f"{student}-clipped"] = trained(f"{TEACHER} --student={student} --kimg=24 --clip=true")
    ROWS[f"{student}-start"] = untrained(f"{TEACHER} --student={student}")

COLUMNS = {
    "FD": "fd_fashion", "precision": "pr_fashion_precision", "recall": "pr_fashion_recall",
    "coverage": "dc_fashion_coverage", "octave 3": "spectrum_3", "octave 4": "spectrum_4", "black": "texture_black",
    "FD (2)": "fd_effnet", "precision (2)": "pr_effnet_precision", "recall (2)": "pr_effnet_recall",
    "coverage (2)": "dc_effnet_coverage", "moved by": "pixel_distance", "FD before": "before_fd_fashion",
    "recall before": "before_pr_fashion_recall",
}  # fmt: skip


main = table_command(__doc__, "generator_study", ROWS, COLUMNS)

if __name__ == "__main__":
    main()
