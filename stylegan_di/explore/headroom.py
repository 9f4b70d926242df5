"""Whether a teacher can help a GAN at all: what it says of the GAN's samples, and whether its own are better.

A denoiser errs least on what it knows. So its error on the GAN's noised samples tells, for each class of the GAN, which
of its own classes it takes them for, and whether red and blue are exchanged; no classifier is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.diffusion import add_noise
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Denoiser, Generator, Space
from stylegan_di.labels import ClassMap, one_hot
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.table import metric
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.sampling.diffusion_sampler import DPM_SOLVER, DiffusionSampler

SIGMA = 1.0  # where shapes are hidden and classes still tell
SAMPLES = 16  # of each class
MAX_CLASSES = 12  # looked at, because each is asked about each
TELLING = 0.01  # relative gap of errors from which the teacher tells classes, or channel orders, apart
WORSE = 2.0  # times as far from real images as the GAN is a hopeless teacher; 8 evaluations do not show its best
FAR = 0.5  # in [-1,1]: between the mean brightness of the GAN and of the teacher; latents have no such scale


@dataclass(frozen=True)
class Headroom:
    """What `look` found.

    `taken_for` is, for each class looked at, the teacher's class that it is told and the one that fits best; empty
    where the teacher does not tell classes apart. `swapped` is whether red and blue fit better exchanged. `gan` and
    `teacher` are mean and standard deviation of their images as the teacher sees them, in [-1,1].
    """

    taken_for: tuple[tuple[int, int], ...]
    swapped: bool
    gan: tuple[float, float]
    teacher: tuple[float, float]
    values: str = "pixels"  # or latents, which have no scale of their own

    @property
    def far(self) -> bool:
        """Whether the means differ too much."""
        return self.values == "pixels" and abs(self.gan[0] - self.teacher[0]) > FAR

    @property
    def agreeing(self) -> int:
        """How many classes fit best as what the teacher is told."""
        return sum(told == best for told, best in self.taken_for)

    def sentence(self) -> str:
        """For the header of a run: 'classes 10 of 10 as the teacher's, brightness -0.43 +- 0.66 against ...'."""
        parts = [f"{self.agreeing} of {len(self.taken_for)} classes fit the teacher's"] if self.taken_for else []
        sizes = [f"{mean:.2f} +- {std:.2f}" for mean, std in (self.gan, self.teacher)]
        return "; ".join([*parts, f"{self.values} {sizes[0]} against {sizes[1]}"])

    def problem(self) -> str | None:
        """Why refining is hopeless, with a remedy; None if nothing speaks against it."""
        if len(self.taken_for) >= 4 and self.agreeing <= len(self.taken_for) / 3:
            wrong = ", ".join(f"told {told}, fits {best}" for told, best in self.taken_for if told != best)
            return f"the teacher's classes are in another order ({wrong}); give --classes=map.json"
        if self.swapped:
            return "red and blue of the GAN are exchanged for the teacher; use networks trained on the same order"
        if self.far:
            return (
                f"the GAN's pixels are {self.gan[0]:.2f} in the mean, the teacher's {self.teacher[0]:.2f}: they were "
                "trained on other images, or on another range of values"
            )
        return None


@torch.no_grad()
def look(generator: Generator, teacher: Denoiser, space: Space, classes: ClassMap, seed: int = 0) -> Headroom:
    """Looks at samples of a GAN through a teacher.

    Args:
        generator, teacher: on one device, in evaluation mode.
        space, classes: how the teacher sees the GAN's images and labels.
        seed: of the samples and their noise.
    """
    device = next(teacher.parameters()).device
    law = generator.label_law
    count = 1 if law.vectors is not None else min(generator.label_dim, MAX_CLASSES) or 1
    n = SAMPLES * count
    rng = SampleRandom(seed, "headroom", 0, range(n), device)
    own = torch.arange(n, device=device) % count
    labels = one_hot(own, generator.label_dim) if generator.label_dim else None
    if law.vectors is not None:
        labels = law.draw(rng)
    images = generator(generator.sample_latents(n, rng=rng), labels)
    x = space.encode(images)
    noise = rng.normal(*x.shape[1:])
    sigma = torch.full([n], SIGMA, device=device).clamp(teacher.sigma_min, teacher.sigma_max)

    def error(seen: Tensor, told: Tensor | None) -> Tensor:
        return (teacher(add_noise(seen, noise, sigma), sigma, told) - seen).square().flatten(1).mean(dim=1)

    told = classes(labels, lambda dim: one_hot(rng.integers(dim), dim))
    taken_for = _taken_for(own, told, lambda guess: error(x, guess), teacher.label_dim, count)
    swapped = False
    if x.shape[1] == 3 and teacher.space is None:
        swapped = bool(error(x.flip(1), told).mean() < (1 - TELLING) * error(x, told).mean())
    sampler = DiffusionSampler(teacher, solver=DPM_SOLVER)
    few = slice(4 * SAMPLES)
    drawn = sampler(sampler.sample_latents(n, rng=rng)[few], None if told is None else told[few])
    values = "pixels" if teacher.space is None else "latents"
    return Headroom(taken_for, swapped, _moments(x, teacher), _moments(drawn, teacher), values)


@dataclass(frozen=True)
class Figures:
    """The first figure of a metric, of a GAN and of the teachers that are to refine it, drawn in 8 evaluations."""

    name: str
    gan: float
    teachers: tuple[float, ...]
    higher: bool  # is better
    samples: int

    def sentence(self) -> str:
        """For the header of a run: 'fd_fashion 29.4 of the GAN, 2.3 of the teacher drawn in 8 evaluations, ...'."""
        teachers = " and ".join(f"{value:.4g}" for value in self.teachers)
        which = "teacher" if len(self.teachers) == 1 else "teachers"
        end = f"{which} drawn in 8 evaluations, on {self.samples} samples"
        return f"{self.name} {self.gan:.4g} of the GAN, {teachers} of the {end}"

    def problem(self, factor: float = 1.0) -> str | None:
        """Says so if every teacher is as bad as the GAN, or that times factor; None if one is better.

        A share of 0, which small samples have, says nothing; and a distance may be below 0, if it is unbiased.
        """
        if self.higher:
            hopeless = max(self.teachers) * factor <= self.gan and self.gan > 0
        else:
            hopeless = min(self.teachers) >= max(self.gan, self.gan * factor)
        return "the teacher is no better than the GAN: choose another" if hopeless else None


def compare(
    evaluator: Evaluator, generator: Generator, teachers: Sequence[Denoiser], seed: int = 0
) -> Figures:
    """Measures a metric of a GAN and of its teachers.

    Args:
        evaluator: of that metric, which judges images, on a few samples; all processes have one and call this.
        generator: the GAN.
        teachers: what is to refine it; those of latents are judged by the images that these stand for.
        seed: of the samples.

    Raises:
        UserError: the metric needs more samples.
    """
    samplers = (image_sampler(each, solver=DPM_SOLVER) for each in teachers)
    try:
        found = [evaluator(each, seed=seed) for each in (generator, *samplers)]
    except UserError as error:
        raise UserError(f"--headroom={evaluator.num_samples}: {error}") from error
    name = next(iter(found[0]))
    gan, *others = (each[name] for each in found)
    higher = metric(evaluator.metrics[0]).higher_is_better
    return Figures(name, gan, tuple(others), bool(higher), evaluator.num_samples)


def _taken_for(
    own: Tensor, told: Tensor | None, error: Callable[[Tensor], Tensor], label_dim: int, count: int
) -> tuple[tuple[int, int], ...]:
    """Pairs of the class that the teacher is told and the one with the least mean error, for each class of the GAN."""
    if told is None or label_dim < 2 or count < 2:
        return ()
    asked = told.argmax(dim=1)
    candidates = sorted(set(asked.tolist()))
    errors = torch.stack([error(one_hot(torch.full_like(own, each), label_dim)) for each in candidates])
    found = []
    for index in range(count):
        means = errors[:, own == index].mean(dim=1)
        if float(means.max()) > (1 + TELLING) * float(means.min()):
            found.append((int(asked[own == index][0]), candidates[int(means.argmin())]))
    return tuple(found)


def _moments(images: Tensor, teacher: Denoiser) -> tuple[float, float]:
    """Mean and standard deviation of the pixels as they are shown, in [-1,1], or of a teacher's latents."""
    pixels = to_uint8(images).float() / 127.5 - 1 if teacher.space is None else images
    return float(pixels.mean()), float(pixels.std())
