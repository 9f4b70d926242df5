"""Diff-Instruct on points of the plane: a generator learns eight spots from a denoiser alone, without seeing a sample.

    python examples/diff_instruct_2d.py
    python examples/diff_instruct_2d.py --divergence=sim --out=out/sim.png

The loop is algorithm 1 of Luo et al. 2023 (arXiv 2305.18455), with two steps of the fake score to one of the student,
and more before the first, since this fake score does not start as a copy of the teacher. The picture shows the
student's samples before the training and now, beside the teacher's.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import torch
from torch import Tensor, randn
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import pad
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from stylegan_di.diffusion import LogNormalLaw, edm_preconditioning
from stylegan_di.divergences import parse_divergence
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.images import save_grid
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import Noised

ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES, STD = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.08


class Teacher(Denoiser):
    """The exact denoiser of eight Gaussians on a ring: the mean of theirs, by how likely each is at x."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        variance = STD**2 + sigma.square()[:, None]
        share = (-torch.cdist(x, CENTRES).square() / (2 * variance)).softmax(dim=1)  # [B,8]
        return (STD**2 * x + sigma.square()[:, None] * (share @ CENTRES)) / variance


class FakeScore(Denoiser):
    """A small network with EDM's preconditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(3)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        c_skip, c_out, c_in, c_noise = edm_preconditioning(sigma[:, None], sigma_data=0.7)
        return c_skip * x + c_out * self.layers(torch.cat([c_in * x, c_noise], dim=1))


def mlp(inputs: int) -> Sequential:
    """A network from [B,inputs] to [B,2]."""
    return Sequential(Linear(inputs, 128), ReLU(), Linear(128, 128), ReLU(), Linear(128, 128), ReLU(), Linear(128, 2))


def distance(a: Tensor, b: Tensor) -> float:
    """The energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of points [n,2]: 0 for equal distributions."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def picture(points: Tensor, side: int = 256) -> Tensor:
    """Points [n,2] in black on white within a gray frame, uint8 [1,side+4,side+4]; it reaches from -1.5 to 1.5."""
    x, y = ((points / 3 + 0.5) * side).clamp(0, side - 1).long().T
    image = torch.full([1, side, side], 255, dtype=torch.uint8)
    image[:, side - 1 - y, x] = 0
    return pad(image, [2, 2, 2, 2], value=128)


@click.command(help=help_of(__doc__))
@click.option("--steps", default=2000, show_default=True, type=click.IntRange(min=5), help="Updates of the student.")
@click.option("--seed", default=0, show_default=True)
@click.option("--divergence", "spec", default="ikl", show_default=True, help="As train.py takes it.")
@click.option("--out", default="out/diff_instruct_2d.png", show_default=True, type=click.Path(path_type=Path))
@user_errors
def main(steps: int, seed: int, spec: str, out: Path) -> None:
    divergence = parse_divergence(spec)
    if divergence is None or divergence.needs_critic or divergence.needs_reals:
        raise click.UsageError(f"--divergence={spec}: this example has neither critic nor real samples; take ikl")
    torch.manual_seed(seed)
    teacher, fake_score, student, law = Teacher(), FakeScore(), mlp(2), LogNormalLaw()
    of_student, of_fake_score = (Adam(net.parameters(), lr=2e-3, betas=(0.0, 0.99)) for net in (student, fake_score))
    decay = LinearLR(of_student, start_factor=1.0, end_factor=0.01, total_iters=steps)
    target, z = CENTRES[torch.randint(8, [2000])] + STD * randn(2000, 2), randn(2000, 2)
    before = student(z).detach()
    out.parent.mkdir(parents=True, exist_ok=True)
    for step in range(steps + 1):
        if step % (steps // 5) == 0 or step == steps:
            now = student(z).detach()
            print(f"step {step:5d}: distance {distance(now, target):.4f}, drawn: {out}", flush=True)
            save_grid(torch.stack([picture(points) for points in (before, now, target)]), out, columns=3)
        if step == steps:
            break
        # The fake score learns to denoise the student's samples.
        for _ in range(2 if step else 500):
            at = Noised(student(randn(256, 2)).detach(), randn(256, 2), law.sigma(randn(256)), None)
            of_fake_score.zero_grad()
            divergence.score_loss(fake_score, at).mean().backward()
            of_fake_score.step()
        # The student follows the divergence's gradient; the fake score stays.
        x, noise, sigma = student(randn(256, 2)), randn(256, 2), law.sigma(randn(256))
        at = Noised(x, noise, sigma, None, teacher, fake_score, differentiable=divergence.differentiable)
        of_student.zero_grad()
        divergence.student_loss(at).mean().backward()
        of_student.step()
        decay.step()


if __name__ == "__main__":
    main()
