"""A normalizing flow, trained from random weights by a diffusion teacher alone, and what its exact likelihood is for.

    python examples/flow.py
    python examples/flow.py --seed=1 --kimg=20

Further options go to train.py. Draws flow.png, six rows of the ten classes. Prints the entropy of the flow's
distribution, which no sampler alone could tell, and for how many of the teacher's samples the likelihood is highest
with their own class: a classifier that has seen no image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from examples.training import draw, example, trained
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
        images = heun_sampler(load_denoiser(TEACHER), torch.randn(60, 1, 16, 16), classes, num_steps=10)
        for when, network in (("before", Flow(**flow.init_kwargs)), ("after", flow)):
            own = network(torch.randn(60, *network.latent_shape), classes)
            entropy = -network.log_likelihood(own, classes).mean()
            told = torch.stack([network.log_likelihood(images, label.expand(60, -1)) for label in torch.eye(10)])
            known = (told.argmax(dim=0) == classes.argmax(dim=1)).float().mean()
            click.echo(f"{when}: entropy {entropy:.0f} nats; {known:.0%} of the teacher's samples in their class")
    draw(outdir / "flow.png", *own.split(10))


if __name__ == "__main__":
    main()
