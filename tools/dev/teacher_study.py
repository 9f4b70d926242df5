"""The study of teachers (docs/measurements/teachers.md): its rows, and the table of what they gave.

    python tools/dev/train_autoencoder.py --data=datasets/fashion-16.zip --dest=datasets/autoencoder-16
    python tools/dev/rows.py teacher_study --seeds=1,2,3
    python tools/dev/teacher_study.py

All refinements have the recipe of the demo but for their own options.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from tools.dev.rows import ROOT, Row
from tools.dev.study import MENDED, PLAIN, table

RUN = "--device={device} --seed={seed} --outdir={out} --metrics=none --snap=100"
#: The layers and the recipe of the shipped teacher, on real images of 16x16 pixels.
DENOISER = (
    "--data={datasets}/fashion-16.zip --cond=true --augment=0 --dropout=0 --label-dropout=0.1 --num-blocks=1 "
    "--attn-resolutions=4"
)
PIXELS = "--model-channels=32 --channel-mult=1,1,2"
LATENTS = "--autoencoder={datasets}/autoencoder-16 --model-channels=64 --channel-mult=1,1"
LEARNS = "--batch=64 --lr=2e-3 --lr-rampup=5 --lr-decay=0.5 --ema=5 --tick=4"
#: Of the noise levels that the two halves of a teacher learn; ln 0.3 = -1.2 is the mean of the whole one's.
FINE, COARSE = "lognormal:P_mean=-2.2,P_std=0.9", "lognormal:P_mean=-0.2,P_std=0.9"
SAMPLED = f"--solver=dpmpp {Row.metrics}"
AT_32 = Row.metrics.replace("fashion-16", "fashion-32")
#: For teachers on the way and their rivals: one batch size, and steps launched alike, so that equal work takes equal
#: time on a GPU too.
ALIKE = "--batch=64 --cuda-graph=false"


def teacher(kimg: int, options: str = PIXELS, metrics: str = SAMPLED) -> Row:
    return Row((f"train.py --kind=edm {DENOISER} {LEARNS} --kimg={kimg} {RUN} {options}",), metrics=metrics)


def refined(
    teacher: str, options: str = MENDED, gan: str = "fashion-gan.pkl", metrics: str = Row.metrics, kimg: int = 44
) -> Row:
    """Half-trained teachers may look hopeless before the run, so all are forced."""
    command = f"train.py --kind=di --cfg=fashion --gan-pkl={gan} --kimg={kimg} --force=true {RUN} {teacher} {options}"
    return Row((command,), metrics=metrics)


ROWS = {
    # The shipped GAN of 32x32 pixels and the shipped teacher of 16x16, or that of its own size.
    "before-32": Row((), "fashion-32-gan.pkl", AT_32, seeded=False),
    "teacher-32": Row((), "fashion-32-teacher.pkl", f"--solver=dpmpp {AT_32}", seeded=False),
    "resized": refined("--teacher=fashion-teacher.pkl --match=resize", gan="fashion-32-gan.pkl", metrics=AT_32),
    "resized-plain": refined(
        "--teacher=fashion-teacher.pkl --match=resize", PLAIN, "fashion-32-gan.pkl", AT_32
    ),
    "own-size": refined("--teacher=fashion-32-teacher.pkl", gan="fashion-32-gan.pkl", metrics=AT_32),
    # The shipped GAN and a teacher of latents, beside one of pixels that was trained as long.
    "latent-teacher": teacher(128, LATENTS, metrics=""),
    "latents": refined("--teacher={row:latent-teacher} --autoencoder={datasets}/autoencoder-16"),
    "latents-plain": refined("--teacher={row:latent-teacher} --autoencoder={datasets}/autoencoder-16", PLAIN),
    # Two halves of a teacher: alone, mixed in constant shares, and each at its noise levels.
    "fine-teacher": teacher(64, f"{PIXELS} --noise-law={FINE}"),
    "coarse-teacher": teacher(64, f"{PIXELS} --noise-law={COARSE}"),
    "fine": refined("--teacher={row:fine-teacher}"),
    "coarse": refined("--teacher={row:coarse-teacher}"),
    "mixed": refined("--teacher=0.5*{row:fine-teacher} --teacher=0.5*{row:coarse-teacher}"),
    "mixed-by-sigma": refined("--teacher={row:fine-teacher}@0-0.3 --teacher=1*{row:coarse-teacher}@0.3-"),
    # A teacher on the way, and one trained first on as many images.
    "whole-teacher": teacher(128, f"{PIXELS} {ALIKE}"),
    "whole": refined("--teacher={row:whole-teacher}"),
    "first": refined("--teacher={row:whole-teacher}", f"{MENDED} {ALIKE}"),
    "online": refined(
        f"--teacher=online {DENOISER} {PIXELS} --teacher-lr=2e-3 --teacher-warmup=84",
        f"{MENDED} {ALIKE}",
        kimg=128,
    ),
}  # fmt: skip


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
@click.option(
    "--results",
    type=click.Path(path_type=Path, exists=True),
    default=ROOT / "docs/measurements/teacher_study.jsonl",
    help="[default: docs/measurements/teacher_study.jsonl]",
)
def main(results: Path) -> None:
    click.echo(table([json.loads(line) for line in results.read_text().splitlines()], ROWS))


if __name__ == "__main__":
    main()
