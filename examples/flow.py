"""A normalizing flow, trained from random weights by a diffusion teacher alone, and what its exact likelihood is for.

    python examples/flow.py
    python examples/flow.py --seed=1 --kimg=20

Further options go to train.py. Draws flow.png, six rows of the ten classes, and prints the log density of the
teacher's samples before and after, and how many of them are told apart by it: the class with the highest density.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import torch
from torch import Tensor
from training import draw, example, trained

from stylegan_di import load_denoiser
from stylegan_di.networks.flow import Flow
from stylegan_di.sampling.heun import heun_sampler

TEACHER = "fashion-teacher.pkl"


@example(__doc__)
def main(outdir: Path, options: tuple[str, ...]) -> None:
    flow = trained(outdir, f"--teacher={TEACHER}", "--student=flow:depth=8,width=256", *options).network
    assert isinstance(flow, Flow)
    with torch.no_grad():
        torch.manual_seed(0)
        classes = torch.eye(10).repeat(6, 1)
        samples = flow(torch.randn(60, *flow.latent_shape), classes)
        images = heun_sampler(load_denoiser(TEACHER), torch.randn_like(samples), classes, num_steps=10)
        for when, network in (("before", Flow(**flow.init_kwargs)), ("after", flow)):
            densities = torch.stack([network.log_likelihood(images, each.expand(60, -1)) for each in torch.eye(10)], 1)
            known = (densities.argmax(dim=1) == classes.argmax(dim=1)).float().mean()
            own = bits(densities[classes.bool()], images)
            click.echo(f"{when}: {own:.2f} bits a pixel for the teacher's samples; {known:.0%} of their classes known")
    draw(outdir / "flow.png", *samples.split(10))


def bits(densities: Tensor, images: Tensor) -> float:
    """The mean of -log2 p(x) a pixel, of log densities [n] in nats, for pixels in 256 grey levels."""
    pixels = images[0].numel()
    return float(-densities.mean() / pixels / math.log(2) + math.log2(127.5))


if __name__ == "__main__":
    main()
