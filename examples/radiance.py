"""A radiance field, as NeRF's, made from nothing by a diffusion teacher that sees its renders from random cameras.

    python examples/radiance.py
    python examples/radiance.py --student=radiance:angle=60 --seed=1

A latent is a camera, so each class is one object, and its distribution that of the views. Further options go to
train.py. Draws radiance.png: each class in a row, turned from left to right.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from examples.training import draw, example, trained

STUDENT = ("--teacher=fashion-teacher.pkl", "--student=radiance:width=64,depth=16,angle=30")
VIEWS = 11


@example(__doc__)
def main(outdir: Path, options: tuple[str, ...]) -> None:
    field = trained(outdir, *STUDENT, *options)
    shares = torch.linspace(0, 1, VIEWS + 2)[1:-1]
    cameras = torch.special.ndtri(shares)[:, None]  # of even angles
    with torch.no_grad():
        draw(outdir / "radiance.png", *(field(cameras, label.expand(VIEWS, -1)) for label in torch.eye(10)))


if __name__ == "__main__":
    main()
