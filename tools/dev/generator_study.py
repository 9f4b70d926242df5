"""The rows of the study of generators (docs/measurements/generators.md), for tools/dev/rows.py.

    python tools/dev/rows.py generator_study --rows=refiner-0.3,refiner-0.3-frozen --seeds=1

A row is a training with the recipe of the shipped models but for its own options.
"""

from __future__ import annotations

from tools.dev.rows import METRICS, Row

SIGMAS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.5)
PLAIN, MENDED = "--whitening=0 --clip=false", "--whitening=1 --clip=true"
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
    "refiner-1.0-clipped": refiner("--whitening=0 --clip=true"),
    "refiner-1.0-whitened": refiner("--whitening=1 --clip=false"),
    "refiner-1.0-mended": refiner(MENDED),
}
for sigma in SIGMAS:
    ROWS[f"refiner-{sigma}"] = refiner(f"--sigma-init={sigma} {PLAIN}")
    ROWS[f"refiner-{sigma}-frozen"] = refiner(f"--sigma-init={sigma} --freeze=generator {PLAIN}")
    ROWS[f"refiner-{sigma}-start"] = untrained(f"--gan-pkl=fashion-gan.pkl --student=refiner --sigma-init={sigma}")
for steps in (1, 2, 4):
    ROWS[f"steps-{steps}"] = trained(f"{TEACHER} --student-steps={steps} --kimg=12")
    ROWS[f"steps-{steps}-clipped"] = trained(f"{TEACHER} --student-steps={steps} --kimg=12 --clip=true")
    ROWS[f"steps-{steps}-start"] = untrained(f"{TEACHER} --student-steps={steps}")
for student in ("decoder", "flow", "radiance"):
    ROWS[student] = trained(f"{TEACHER} --student={student} --kimg=24 {PLAIN}")
    ROWS[f"{student}-mended"] = trained(f"{TEACHER} --student={student} --kimg=24 {MENDED}")
    ROWS[f"{student}-start"] = untrained(f"{TEACHER} --student={student}")
