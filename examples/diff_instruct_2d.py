"""Diff-Instruct on points of the plane: a generator learns eight spots from a denoiser alone, without seeing a sample.

    python examples/diff_instruct_2d.py
    python examples/diff_instruct_2d.py --divergence=sim --out=out/sim.png

The loop is algorithm 1 of Luo et al. 2023 (arXiv 2305.18455), with two steps of the fake score to one of the student,
and more at first, since this fake score does not start as a copy of the teacher. The picture shows
the student's samples before and after, beside the teacher's.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, randn
from torch.nn import Linear, ReLU, Sequential
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from stylegan_di.diffusion import LogNormalLaw, edm_preconditioning
from stylegan_di.divergences import parse_divergence
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import Divergence, Noised

ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES, STD = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.08
BATCH, RATE, WARMUP = 256, 2e-3, 500


def spots(n: int) -> Tensor:
    """Samples [n,2] of the teacher's distribution, eight Gaussians on a ring."""
    return CENTRES[torch.randint(8, [n])] + STD * randn(n, 2)


class Teacher(Denoiser):
    """The exact denoiser of `spots`: the mean of its Gaussians' denoisers, by how likely each is at x."""

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


def mlp(inputs: int, width: int = 128) -> Sequential:
    """A network from [B,inputs] to [B,2]."""
    hidden = [Linear(inputs, width), ReLU(), Linear(width, width), ReLU(), Linear(width, width), ReLU()]
    return Sequential(*hidden, Linear(width, 2))


def train(student: Sequential, divergence: Divergence, steps: int) -> None:
    """Trains the student, from latents [B,2] to points [B,2], to the teacher's distribution."""
    teacher, fake_score, law = Teacher(), FakeScore(), LogNormalLaw()
    of_student = Adam(student.parameters(), lr=RATE, betas=(0.0, 0.99))
    of_fake_score = Adam(fake_score.parameters(), lr=RATE, betas=(0.0, 0.99))
    decay = LinearLR(of_student, start_factor=1.0, end_factor=0.01, total_iters=steps)
    for step in range(1, steps + 1):
        # The fake score learns to denoise the student's samples. Only RealUID also wants it to see real ones.
        for _ in range(2 if step > 1 else WARMUP):
            x, noise, sigma = student(randn(BATCH, 2)).detach(), randn(BATCH, 2), law.sigma(randn(BATCH))
            reals = (spots(BATCH), None) if divergence.needs_reals else None
            of_fake_score.zero_grad()
            divergence.score_loss(fake_score, x, noise, sigma, labels=None, reals=reals).mean().backward()
            of_fake_score.step()

        # The student follows the divergence's gradient, with the fake score as it is.
        x, noise, sigma = student(randn(BATCH, 2)), randn(BATCH, 2), law.sigma(randn(BATCH))
        at = Noised(x, noise, sigma, None, teacher, fake_score, differentiable=divergence.differentiable)
        of_student.zero_grad()
        divergence.student_loss(at).mean().backward()
        of_student.step()
        decay.step()
        if step in (steps * i // 5 for i in range(1, 6)):
            print(f"step {step:5d}: distance {distance(student):.4f}", flush=True)


@torch.no_grad()
def distance(student: Sequential, n: int = 2000) -> float:
    """The energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of student and teacher: 0 for equal distributions."""
    a, b = student(randn(n, 2)), spots(n)
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def draw(path: Path, **panels: Tensor) -> None:
    """Points [n,2] by title, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), layout="constrained")
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.T, s=3, alpha=0.5, linewidths=0)
        axis.set(title=title, aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of the student")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--divergence", default="ikl", help="as train.py takes it, such as sid or ikl+0.5*fisher")
    parser.add_argument("--out", type=Path, default=Path("out/diff_instruct_2d.png"))
    options = parser.parse_args()
    try:
        divergence = parse_divergence(options.divergence)
    except UserError as error:
        parser.error(str(error))
    if divergence is None or divergence.needs_critic:
        parser.error(
            f"--divergence={options.divergence}: this example has no critic and wants a divergence, such as ikl"
        )

    torch.manual_seed(options.seed)
    student, z = mlp(2), randn(2000, 2)
    print(f"step     0: distance {distance(student):.4f}")
    before = student(z).detach()
    train(student, divergence, options.steps)
    draw(options.out, before=before, after=student(z).detach(), teacher=spots(2000))
    print(f"drawn: {options.out}")


if __name__ == "__main__":
    main()
