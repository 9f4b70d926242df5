"""A whole step of Diff-Instruct on Gaussians: its gradients are those of the divergence's closed form.

The student is x = m + s z, teacher and fake score are exact denoisers. The gradients are of second degree in z and the
noise n, so the four pairs of signs, which have the moments of a standard normal up to there, give their exact means.
Some divergences divide by what a whole image has, such as mean|x - D_p|. There every image has all four pairs, as its
pixels, so that this is one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.diffusion import LogNormalLaw, edm_weight, per_sample
from stylegan_di.divergences import parse_divergence
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.random import SampleRandom
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.training.batch import Batch
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods import diff_instruct
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from tests.test_methods import CPU, make_batch

MEAN, STD, SIGMA = 0.3, 0.5, 0.7  # of the teacher; the noise level
START = (-0.4, 0.8)  # mean and std of the student
SIGNS = {"z": torch.tensor([1.0, 1.0, -1.0, -1.0]), "noise": torch.tensor([1.0, -1.0, 1.0, -1.0])}
Closed = Callable[[Tensor, Tensor], Tensor]  # mean and std of the student -> the divergence


class OfGaussian(torch.nn.Module):
    """A network of one number, whose parameters are a mean and a standard deviation."""

    img_resolution = img_channels = 1
    label_dim = 0

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = (torch.nn.Parameter(torch.tensor(value)) for value in (mean, std))


class Line(OfGaussian, Generator):
    """x = m + s z."""

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return torch.empty([n, 1, 1, 1])

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        return self.mean + self.std * z


class Exact(OfGaussian, Denoiser):
    """The denoiser of N(m, s^2)."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = per_sample(sigma, x).square()
        return (x * self.std.square() + self.mean * noise) / (self.std.square() + noise)


def kl(weight: float) -> Closed:
    """w KL(q_sigma || p_sigma)."""

    def closed(mean: Tensor, std: Tensor) -> Tensor:
        ratio = (std.square() + SIGMA**2) / (STD**2 + SIGMA**2)
        return weight / 2 * (ratio + (mean - MEAN).square() / (STD**2 + SIGMA**2) - 1 - ratio.log())

    return closed


def fisher(weight: float) -> Closed:
    """w E |s_p - s_q|^2."""

    def closed(mean: Tensor, std: Tensor) -> Tensor:
        own, teachers = std.square() + SIGMA**2, STD**2 + SIGMA**2
        return weight * ((1 / own - 1 / teachers).square() * own + ((mean - MEAN) / teachers).square())

    return closed


def share(std: float) -> float:
    """Of the noisy image in the denoiser of N(m, std^2)."""
    return std**2 / (std**2 + SIGMA**2)


def moved(mean: Tensor, std: Tensor) -> Tensor:
    """E |D_p - D_q|^2 where the student moves its samples, and D_q stays that of the start."""
    slope = share(STD) - share(START[1])
    offset = (1 - share(STD)) * MEAN - (1 - share(START[1])) * START[0]
    return slope**2 * (std.square() + SIGMA**2) + (slope * mean + offset).square()


def product(mean: Tensor, std: Tensor) -> Tensor:
    """The rest of E |D_p - D_q|^2, from D_q alone: 2 <D_p - D_q, D_q - x>, by the score-divergence gradient theorem."""
    return fisher(SIGMA**4)(mean, std) - moved(mean, std)


def normaliser() -> float:
    """1 / mean|x - D_p| over the four pairs."""
    x = START[0] + START[1] * SIGNS["z"]
    denoised = MEAN + share(STD) * (x + SIGMA * SIGNS["noise"] - MEAN)
    return 1 / float((x - denoised).abs().mean())


def sid(alpha: float) -> Closed:
    """Of the four pixels, 4 k (E <D_p - D_q, D_q - x> + (1 - alpha) E |D_p - D_q|^2)."""
    return lambda mean, std: 4 * normaliser() * (product(mean, std) / 2 + (1 - alpha) * moved(mean, std))


def sim(c: float) -> Closed:
    """4 E <D_p - D_q, D_q - x> / sqrt(4 E |D_p - D_q|^2 + c^2); the root can be held, as what it divides is 0."""
    root = math.sqrt(4 * float(fisher(SIGMA**4)(*map(torch.tensor, START))) + c**2)
    return lambda mean, std: 2 * product(mean, std) / root


def mixed(mean: Tensor, std: Tensor) -> Tensor:
    return 2 * kl(SIGMA**2)(mean, std) + 0.5 * fisher(SIGMA**4)(mean, std)


def signs(name: str, chunk: range, whole: bool) -> Tensor:
    """Of a chunk's images, one pair of signs each, or where they are whole, all four pairs in 2x2 pixels."""
    if not whole:
        return SIGNS[name][list(chunk)].reshape(-1, 1, 1, 1)
    return torch.stack([SIGNS[name].roll(index) for index in chunk]).reshape(-1, 1, 2, 2)


def gradients(
    patch: pytest.MonkeyPatch, fake_score: Exact, batch_gpu: int, whole: bool = False, **given: Any
) -> dict[str, tuple[float, float]]:
    """The gradients in mean and std of a first step, by role."""
    still = 1e-12  # Adam makes whole steps of rounding errors
    config = TrainConfig("di", teacher="made here", gan_pkl="made here", batch=4, fake_lr=still, **given)
    divergence = parse_divergence(config.divergence)
    assert divergence is not None
    law = LogNormalLaw()
    instruction = Instruction(Exact(MEAN, STD), Pixels(1, 1), fake_score, divergence, law, law)
    found: dict[str, tuple[float, float]] = {}
    apply = diff_instruct.apply_gradients

    def noted(state: Any, role: str) -> Tensor:
        network: Any = state.networks[role]
        found[role] = (float(network.mean.grad), float(network.std.grad))
        return apply(state, role)

    def noise(self: Batch, law: Any, purpose: str, chunk: range, x: Tensor, within: Any = None) -> Any:
        return signs("noise", chunk, whole), torch.full([len(chunk)], SIGMA)

    patch.setattr(diff_instruct, "apply_gradients", noted)
    patch.setattr(Batch, "noise", noise)
    patch.setattr(
        diff_instruct, "generated",
        lambda model, batch, chunk, purpose: (model(signs("z", chunk, whole)), None),
    )  # fmt: skip
    method = DiffInstruct(config, CPU, None, Line(*START), [instruction])
    method.step(make_batch(batch_gpu=batch_gpu), Journal())
    return found


@pytest.mark.parametrize("batch_gpu", [4, 2, 1])
@pytest.mark.parametrize(
    ("given", "closed"),
    [
        ({"divergence": "ikl"}, kl(SIGMA**2)),
        ({"divergence": "ikl", "one_noise": True}, kl(SIGMA**2)),
        ({"divergence": "ikl", "fake_steps": 2}, kl(SIGMA**2)),
        ({"divergence": "ikl:weight=one"}, kl(1)),
        ({"divergence": "fisher"}, fisher(SIGMA**4)),
        ({"divergence": "fisher:weight=sigma2"}, fisher(SIGMA**2)),
        ({"divergence": "fisher:weight=one"}, fisher(1)),
        ({"divergence": "2*ikl+0.5*fisher"}, mixed),
        ({"divergence": "ikl:weight=dmd", "whole": True}, kl(4 * normaliser() * SIGMA**2)),
        ({"divergence": "sid", "whole": True}, sid(1)),
        ({"divergence": "sid:alpha=1.2", "whole": True}, sid(1.2)),
        ({"divergence": "sid:alpha=0.5", "whole": True}, fisher(2 * normaliser() * SIGMA**4)),
        ({"divergence": "sim", "whole": True}, sim(0.03)),
        ({"divergence": "sim:c=2", "whole": True}, sim(2)),
        ({"divergence": "realuid:alpha=1,beta=1", "whole": True}, fisher(2 * normaliser() * SIGMA**4)),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_student_follows_the_divergence(
    given: dict[str, Any], closed: Closed, batch_gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, std = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in START)
    expected = [float(part) for part in torch.autograd.grad(closed(mean, std), [mean, std])]
    found = gradients(monkeypatch, Exact(*START), batch_gpu, **given)
    assert found["fake_score"] == pytest.approx((0, 0), abs=4e-6)  # it is exact, and so it stays
    assert found["model"] == pytest.approx(expected, rel=1e-5)


def test_the_fake_score_follows_the_denoising_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """E lambda |D(x_s) - x|^2 for D of N(m', s'^2) and x of N(m, s^2): with c = s'^2 / (s'^2 + sigma^2) it is
    lambda ((1 - c)^2 ((m' - m)^2 + s^2) + c^2 sigma^2)."""
    fake_mean, fake_std = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.1, 0.6))
    c = fake_std.square() / (fake_std.square() + SIGMA**2)
    error = (1 - c).square() * ((fake_mean - START[0]).square() + START[1] ** 2) + c.square() * SIGMA**2
    loss = edm_weight(torch.tensor(SIGMA, dtype=torch.float64)) * error
    expected = [float(part) for part in torch.autograd.grad(loss, [fake_mean, fake_std])]
    assert gradients(monkeypatch, Exact(0.1, 0.6), 2)["fake_score"] == pytest.approx(expected, rel=1e-5)
