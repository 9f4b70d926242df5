"""The demos: a shipped GAN and the shipped teacher of its images, no data; images from before and after.

    python tools/demo.py --seed=0
    python tools/demo.py --student=refiner --dest=out/demo-refiner.png
    python tools/demo.py --gan=fashion-32-gan.pkl --dest=out/demo-32.png

Runs `python train.py --kind=di --gan-pkl=GAN --student=STUDENT --seed=SEED` with its defaults, and enlarges the image
grid. The student is the GAN itself, or a refiner: the GAN with the teacher's network behind it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from a clone that is not installed

from stylegan_di.dnnlib.cli import Choice, help_of, user_errors

GANS = ("fashion-gan.pkl", "fashion-32-gan.pkl")
ROOT = Path(__file__).resolve().parent.parent
SCALE = 4  # factor by which the grid is enlarged


@click.command(help=help_of(__doc__))
@click.option(
    "--gan", type=Choice(GANS), default=GANS[0], show_default=True, help="The shipped GAN that is refined."
)
@click.option(
    "--student", type=Choice(["auto", "refiner"]), default="auto", show_default=True, help="What is trained."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--outdir", default="runs", show_default=True, help="Folder in which the run's folder is made.")
@click.option("--dest", default="out/demo.png", show_default=True, help="The before/after grid.")
@user_errors
def main(gan: str, student: str, seed: int, outdir: str, dest: str) -> None:
    before = set(Path(outdir).glob("*"))
    command = ["train.py", "--kind=di", f"--gan-pkl={gan}", f"--seed={seed}", f"--outdir={outdir}"]
    command += [] if student == "auto" else [f"--student={student}"]
    click.echo("python " + " ".join(command))
    subprocess.run([sys.executable, ROOT / command[0], *command[1:]], check=True)
    (run,) = set(Path(outdir).glob("*")) - before
    target = Path(dest)
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(run / "before_after.png") as grid:
        grid.resize([SCALE * size for size in grid.size], Image.Resampling.NEAREST).save(target)
    click.echo(f"{target}: the original GAN above, the refined one below, at the same latents")


if __name__ == "__main__":
    main()
