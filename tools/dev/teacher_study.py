"""The study of teachers (docs/measurements/teachers.md): its rows, and the table of what they gave.

    python tools/dev/train_autoencoder.py --data=datasets/fashion-16.zip --dest=datasets/autoencoder-16
    python tools/dev/rows.py teacher_study --seeds=1,2,3
    python tools/dev/teacher_study.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from tools.dev.rows import Row
from tools.dev.study import table_command

RUN = "--device={device} --seed={seed} --outdir={out} --metrics=none --snap=100"
#: The layers of the shipped teacher and its learning rate, on real images of 16x16 pixels.
DENOISER = (
    "--data={datasets}/fashion-16.zip --cond=true --augment=0 --dropout=0 --label-dropout=0.1 --num-blocks=1 "
    "--attn-resolutions=4"
)
PIXELS = "--model-channels=32 --channel-mult=1,1,2"
LATENTS = "--autoencoder={datasets}/autoencoder-16 --model-channels=64 --channel-mult=1,1"
LEARNS = "--batch=16 --lr=2e-3 --lr-rampup=2 --lr-decay=0.5 --ema=2 --tick=4"
REFINES = (
    "--divergence=ikl --whitening=1 --clip=true --batch=32 --lr=2e-3 --fake-lr=1.5e-3 --lr-decay=0.5 --ema=5 --tick=4"
)
#: The noise levels that the halves of a teacher learn; ln 0.3 = -1.2 is the mean of a whole one's.
FINE, COARSE = "lognormal:P_mean=-2.2,P_std=0.9", "lognormal:P_mean=-0.2,P_std=0.9"
METRICS = "--metrics=fd_fashion,pr_fashion --num=3000 --data={datasets}/fashion-16-test.zip"
COLUMNS = {"FD": "fd_fashion", "precision": "pr_fashion_precision", "recall": "pr_fashion_recall"}
AT_32 = METRICS.replace("fashion-16", "fashion-32")


def teacher(kimg: int, options: str, seeded: bool) -> Row:
    command = f"train.py --kind=edm {DENOISER} {LEARNS} --kimg={kimg} {RUN} {options}"
    return Row((command,), metrics="", seeded=seeded)


def refined(
    teacher: str, options: str = "", gan: str = "fashion-gan.pkl", metrics: str = METRICS, kimg: int = 8
) -> Row:
    """By IKL. Half-trained teachers may look hopeless before the run, so all are forced."""
    command = f"train.py --kind=di --gan-pkl={gan} --kimg={kimg} --force=true {RUN} {REFINES} {teacher} {options}"
    return Row((command,), metrics=metrics)


ROWS = {
    # The shipped GAN of 32x32 pixels and the shipped teacher of 16x16.
    "before-32": Row((), "fashion-32-gan.pkl", AT_32, seeded=False),
    "resized": refined("--teacher=fashion-teacher.pkl --match=resize", gan="fashion-32-gan.pkl", metrics=AT_32),
    # The shipped GAN and a teacher of latents.
    "before": Row((), "fashion-gan.pkl", METRICS, seeded=False),
    "latent-teacher": teacher(24, LATENTS, seeded=False),
    "latents": refined("--teacher={row:latent-teacher} --autoencoder={datasets}/autoencoder-16"),
    # Two half-trained teachers, for fine and for coarse noise: alone, mixed in constant shares, and by sigma.
    "fine-teacher": teacher(12, f"{PIXELS} --noise-law={FINE}", seeded=False),
    "coarse-teacher": teacher(12, f"{PIXELS} --noise-law={COARSE}", seeded=False),
    "mixed-by-sigma": refined("--teacher={row:fine-teacher}@0-0.3 --teacher=1*{row:coarse-teacher}@0.3-"),
    "mixed": refined("--teacher=0.5*{row:fine-teacher} --teacher=0.5*{row:coarse-teacher}"),
    "fine": refined("--teacher={row:fine-teacher}"),
    "coarse": refined("--teacher={row:coarse-teacher}"),
    # A teacher on the way, and one trained first: as many images for each network, so as much work.
    "first-teacher": teacher(16, PIXELS, seeded=True),
    "first": refined("--teacher={row:first-teacher}", "--batch=16"),
    "online": refined(
        f"--teacher=online {DENOISER} {PIXELS} --teacher-lr=2e-3 --teacher-warmup=8",
        "--batch=16 --lr-decay=0.75",  # so that the student's rate falls as the other's
        kimg=16,
    ),
}


main = table_command(__doc__, "teacher_study", ROWS, COLUMNS)

if __name__ == "__main__":
    main()
