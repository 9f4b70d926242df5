"""A GAN with the teacher's network behind it, trained together: latents keep their meaning, images get detail.

    python examples/refiner.py
    python examples/refiner.py --sigma-init=0.5 --freeze=generator

Further options go to train.py. Draws refiner.png: the GAN's images above the refiner's, at the same latents.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from examples.training import draw, example, trained
from stylegan_di import load_generator

GAN = "fashion-gan.pkl"


@example(__doc__)
def main(outdir: Path, options: tuple[str, ...]) -> None:
    refiner = trained(outdir, f"--gan-pkl={GAN}", "--student=refiner", *options)
    rows = [network.draw(range(60)).clamp(-1, 1) for network in (load_generator(GAN), refiner)]
    click.echo(f"pixels moved by {float((rows[0] - rows[1]).abs().mean()):.3f} on average, of images in [-1, 1]")
    pairs = zip(rows[0].split(12), rows[1].split(12), strict=True)
    draw(outdir / "refiner.png", *(row for pair in pairs for row in pair))


if __name__ == "__main__":
    main()
