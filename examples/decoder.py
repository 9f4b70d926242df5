"""A decoder as variational autoencoders have, trained from random weights by a diffusion teacher alone.

    python examples/decoder.py
    python examples/decoder.py --seed=1 --kimg=20

No image, encoder or GAN is needed. Further options go to train.py. Draws decoder.png: six rows of the ten classes, and
below a walk between two latents of each of two classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from examples.training import draw, example, trained

STUDENT = ("--teacher=fashion-teacher.pkl", "--student=decoder:z_dim=64,width=64")


@example(__doc__)
def main(outdir: Path, options: tuple[str, ...]) -> None:
    decoder = trained(outdir, *STUDENT, *options)
    with torch.no_grad():
        torch.manual_seed(0)
        classes = torch.eye(10)
        samples = [decoder(torch.randn(10, 64), classes) for _ in range(6)]
        angles = torch.linspace(0, torch.pi / 2, 10)[:, None]  # sums of two latents on a circle are standard normal
        walks = []
        for label in classes[[9, 3]]:
            start, end = torch.randn(2, 1, 64)
            walks.append(decoder(start * angles.cos() + end * angles.sin(), label.expand(10, -1)))
    draw(outdir / "decoder.png", *samples, *walks)


if __name__ == "__main__":
    main()
