"""The study of colour photos (docs/measurements/cifar.md): its rows, and the table of what they gave.

    bash tools/dev/make_cifar_models.sh cifar-10-python.tar.gz
    python tools/dev/rows.py cifar_study --seeds=1,2,3
    python tools/dev/cifar_study.py
    python tools/dev/cifar_study.py --results=docs/measurements/cifar_gpu.jsonl

A GAN of CIFAR-10 at 16x16 is refined by what was found on Fashion-MNIST; nothing is chosen here.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from tools.dev.rows import NEWEST, Row
from tools.dev.study import table_command

GAN, TEACHER = "{datasets}/cifar10-16-gan.pkl", "{datasets}/cifar10-16-teacher.pkl"
JUDGE = (
    "--metrics=fd_effnet,pr_effnet,dc_effnet,kid_effnet,spectrum,texture --num=10000 "
    "--data={datasets}/cifar10-16-test.zip"
)
RUN = "--device={device} --seed={seed} --outdir={out} --metrics=none --snap=100"
#: What the recipe of Fashion-MNIST has besides its divergence, its two options and its length.
LEARNS = "--batch=32 --lr-decay=0.5 --ema=5 --tick=2"
FAST = f"{LEARNS} --lr=2e-3 --fake-lr=1.5e-3"
SLOW = f"{LEARNS} --lr=5e-4 --fake-lr=1e-3"
REFINER = f"{LEARNS} --student=refiner --lr=1e-3 --fake-lr=1e-3"
DISTILLED = f"{LEARNS} --lr=5e-4"
CLIPPED = "--clip=true --clip-return=0"
COLUMNS = {
    "FD": "fd_effnet", "precision": "pr_effnet_precision", "recall": "pr_effnet_recall",
    "density": "dc_effnet_density", "coverage": "dc_effnet_coverage", "KID": "kid_effnet",
    "octave 1": "spectrum_1", "octave 2": "spectrum_2", "octave 3": "spectrum_3", "octave 4": "spectrum_4",
    "detail": "texture_detail",
}  # fmt: skip


def trained(options: str) -> Row:
    return Row((f"train.py {RUN} {options}",), NEWEST, JUDGE)


def refined(options: str) -> Row:
    return trained(f"--kind=di --gan-pkl={GAN} --teacher={TEACHER} {options}")


def distilled(options: str) -> Row:
    return trained(f"--kind=di --teacher={TEACHER} --sigma-init=2.5 {DISTILLED} {options}")


ROWS = {
    "before": Row((), GAN, JUDGE, seeded=False),
    "teacher": Row((), TEACHER, f"--solver=dpmpp {JUDGE}", seeded=False),
    "ikl": refined(f"{FAST} --kimg=30 --divergence=ikl"),
    "sid-mended": refined(f"{FAST} --kimg=20 --divergence=sid {CLIPPED} --whitening=1"),
    "refiner-clipped": refined(f"{REFINER} --kimg=14 {CLIPPED}"),
    "gan-continued": trained(
        f"--kind=gan --resume={GAN} --kimg=53 --data={{datasets}}/cifar10-16.zip --cond=true --mirror=true --batch=32 "
        "--mixing=0 --pl-weight=0 --aug=noaug --gamma=0.05 --lr=2e-3 --ema=5"
    ),
    "one-step-clipped": distilled(f"--kimg=20 {CLIPPED}"),
    "sid": refined(f"{FAST} --kimg=20 --divergence=sid"),
    "sid-whitened": refined(f"{FAST} --kimg=20 --divergence=sid --whitening=1"),
    "sid-clipped": refined(f"{FAST} --kimg=20 --divergence=sid {CLIPPED}"),
    "ikl-mended": refined(f"{FAST} --kimg=30 --divergence=ikl {CLIPPED} --whitening=1"),
    "ikl-dmd": refined(f"{FAST} --kimg=30 --divergence=ikl:weight=dmd"),
    "refiner": refined(f"{REFINER} --kimg=14"),
    "one-step": distilled("--kimg=20"),
    "refiner-sid": refined(f"{REFINER} --kimg=10 --divergence=sid {CLIPPED}"),
    "one-step-sid": distilled(f"--kimg=14 --divergence=sid {CLIPPED}"),
    "sid-slow": refined(f"{SLOW} --kimg=20 --divergence=sid"),
    # Three times the length.
    "sid-long": refined(f"{FAST} --kimg=60 --divergence=sid"),
    "refiner-long": refined(f"{REFINER} --kimg=42 {CLIPPED}"),
    "one-step-long": distilled(f"--kimg=60 {CLIPPED}"),
    # As tools/dev/gpu_cifar.sh has it: more samples a step, and slower.
    "refiner-sid-slow": refined(
        "--student=refiner --divergence=sid --kimg=150 --batch=128 --lr=5e-4 --fake-lr=5e-4 --lr-decay=0.5 --ema=10 "
        "--amp=bf16 --headroom=0 --tick=5"
    ),
}


#: Rows of tools/dev/gpu_cifar.sh as it was first, whose rates did not fall.
CONSTANT = ("sid-constant", "ikl-constant", "one-step-constant")

main = table_command(__doc__, "cifar_study", (*ROWS, *CONSTANT), COLUMNS)

if __name__ == "__main__":
    main()
