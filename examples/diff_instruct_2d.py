"""Diff-Instruct on points in the plane: a generator learns eight spots on a ring from a denoiser alone, with no data.

    python examples/diff_instruct_2d.py --divergence=sid:alpha=1.2 --out=out/sid.png

The loop is algorithm 1 of Luo et al. 2023 (arXiv 2305.18455). The parts are the toolkit's own: the same lines train
networks of images.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import Linear, Sequential, SiLU

from stylegan_di.diffusion import LogNormalLaw, edm_preconditioning
from stylegan_di.divergences import parse_divergence
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import Noised

ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES, STD = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.08


class Ring(Denoiser):
    """The teacher: the exact denoiser of eight equally heavy Gaussians around CENTRES."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        variance = STD**2 + sigma.reshape(-1, 1) ** 2
        share = (-torch.cdist(x, CENTRES).square() / (2 * variance)).softmax(dim=1)  # of each spot at x, [B,8]
        return x + (STD**2 - variance) / variance * (x - share @ CENTRES)


class Net(Denoiser):
    """The fake score: a small network under EDM's preconditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(3)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        c = edm_preconditioning(sigma.reshape(-1, 1), sigma_data=0.7)
        return c.c_skip * x + c.c_out * self.layers(torch.cat([c.c_in * x, c.c_noise], dim=1))


def mlp(inputs: int, width: int = 128) -> Sequential:
    return Sequential(Linear(inputs, width), SiLU(), Linear(width, width), SiLU(), Linear(width, width), SiLU(), Linear(width, 2))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|: zero only for equal distributions."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


@click.command()
@click.option("--steps", default=3000, help="Steps of the student.")
@click.option("--seed", default=0)
@click.option("--divergence", "spec", default="ikl", help="As in train.py, without a critic and without real samples.")
@click.option("--out", default="out/diff_instruct_2d.png", type=Path)
@click.option("--lr", default=1e-3)
@click.option("--inner", default=2)
def main(steps: int, seed: int, spec: str, out: Path, lr: float, inner: int) -> None:
    torch.manual_seed(seed)
    divergence, teacher, student, fake_score, law = parse_divergence(spec), Ring(), mlp(2), Net(), LogNormalLaw(-1.2, 1.2)
    student_optimizer = torch.optim.Adam(student.parameters(), lr=lr, betas=(0.0, 0.99))
    fake_optimizer = torch.optim.Adam(fake_score.parameters(), lr=2e-3, betas=(0.0, 0.99))
    z, target = torch.randn(2000, 2), CENTRES[torch.randint(8, (2000,))] + STD * torch.randn(2000, 2)
    import time
    t0=time.time()
    with torch.no_grad():
        before = student(z)
    for step in range(steps + 1):
        for g in student_optimizer.param_groups: g["lr"] = lr * (1 - step / (steps + 1))
        for _ in range(inner):
            x, noise, sigma = student(torch.randn(256, 2)).detach(), torch.randn(256, 2), law.sigma(torch.randn(256))
            fake_optimizer.zero_grad()
            divergence.score_loss(fake_score, x, noise, sigma, None).mean().backward()
            fake_optimizer.step()
        x, noise, sigma = student(torch.randn(256, 2)), torch.randn(256, 2), law.sigma(torch.randn(256))
        at = Noised(x, noise, sigma, None, teacher, fake_score.requires_grad_(False), differentiable=divergence.differentiable)
        student_optimizer.zero_grad()
        divergence.student_loss(at).mean().backward()
        student_optimizer.step()
        fake_score.requires_grad_(True)
        if step % (steps // 5) == 0:
            with torch.no_grad(): after = student(z)
            print(f"step {step:5d}  distance {energy_distance(after, target):.4f} {time.time()-t0:.1f}s")
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for a, pts, t in zip(axes, (before, after, target), ("before", "after", "teacher")):
        a.scatter(*pts.T, s=2, alpha=.4); a.set(xlim=(-1.6,1.6), ylim=(-1.6,1.6), title=t, aspect="equal")
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out)

if __name__ == "__main__":
    main()
