"""An instruction: one teacher trains a student through a fake score, which learns the student's distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.diffusion import NoiseLaw
from stylegan_di.divergences import parse_divergence
from stylegan_di.interfaces import Critic, Denoiser, Generator, Space
from stylegan_di.labels import ClassMap, LabelLaw, class_map
from stylegan_di.loss_di import Divergence, Noised
from stylegan_di.spaces import SPACES
from stylegan_di.spaces.latents import Latents
from stylegan_di.spaces.shown import Shown
from stylegan_di.training.batch import Batch, Samples


@dataclass(frozen=True)
class FakePass:
    """A forward pass of the fake score on noisy samples: its loss [n], and what it was given and said."""

    loss: Tensor
    noise: Tensor  # [n,...]
    sigma: Tensor  # [n]
    labels: Tensor | None
    x0: Tensor  # [n,...], without its graph


@dataclass
class Instruction:
    """A teacher with its space, fake score, divergence and weight. A training has one or several of these.

    Teacher and fake score see the student's images in `space`, with labels by `classes`. `role` names the fake score in
    the training state and keys its random numbers. `teachers_own`: whether real samples are a teacher's, with its own
    labels.
    """

    teacher: Denoiser
    space: Space
    fake_score: Denoiser
    divergence: Divergence
    student_law: NoiseLaw  # noise levels of the student's update
    fake_law: NoiseLaw  # noise levels of the fake score's update
    weight: float = 1.0
    role: str = "fake_score"
    classes: ClassMap = field(default_factory=ClassMap)
    teachers_own: bool = False

    @classmethod
    def configured(
        cls, config: TrainConfig, teacher: Denoiser, label_dim: int, weight: float = 1.0, index: int = 0
    ) -> Instruction:
        """Makes the configured instruction of a teacher, with a copy of it, or adapters on it, as the fake score.

        label_dim: the student's; index: of the teacher among several.
        """
        divergence = parse_divergence(config.divergence)
        assert divergence is not None
        rank = config.fake_rank
        return cls(
            teacher=teacher,
            space=space_of(config, teacher),
            fake_score=teacher.trainable_copy() if rank is None else teacher.adapted_copy(rank),
            divergence=divergence,
            student_law=config.student_law,
            fake_law=config.fake_law,
            weight=weight,
            role=f"fake_score{index + 1}" if index else "fake_score",
            classes=class_map(config.classes, label_dim, teacher.label_dim),
            teachers_own=samples_wanted(config.data) is not None,
        )

    def score_loss(
        self, samples: Samples, batch: Batch, chunk: range, purpose: str, reals: Samples | None
    ) -> FakePass:
        """Lets the fake score denoise a chunk's samples, whose graph is not used."""
        images, labels = samples
        with torch.no_grad():
            x = self.space.encode(images)
            noise, sigma = batch.noise(self.fake_law, purpose, chunk, x, within=self.teacher)
            labels = self._labels(labels, batch, chunk, purpose)
            seen = None
            if reals is not None:
                own = (
                    self.classes.of_teachers(reals[1]) if self.teachers_own
                    else self._labels(reals[1], batch, chunk, f"{purpose}/reals")
                )  # fmt: skip
                seen = Noised(self.space.encode(reals[0]), noise, sigma, own)
        said = []

        def fake_score(*asked: Any) -> Tensor:
            denoised = self.fake_score(*asked)
            said.append(denoised.detach())
            return denoised

        loss = self.divergence.score_loss(fake_score, Noised(x, noise, sigma, labels), self.fake_law.weight, seen)
        return FakePass(loss, noise, sigma, labels, said[0])

    def gradient(
        self,
        images: Tensor,
        labels: Tensor | None,
        batch: Batch,
        chunk: range,
        purpose: str,
        critic: Critic | None,
        shared: FakePass | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the divergence's gradient in a chunk's images, which must require grad, and the noise levels [n].

        shared: the fake score's pass on these images, which then serves this update too; None for noise of its own.
        """
        x = self.space.encode(images)
        differentiable = self.divergence.differentiable
        if shared is None:
            noise, sigma = batch.noise(self.student_law, purpose, chunk, x, within=self.teacher)
            labels = self._labels(labels, batch, chunk, purpose)
            at = Noised(x, noise, sigma, labels, self.teacher, self.fake_score, critic, differentiable)
        else:
            sigma = shared.sigma
            at = Noised(x, shared.noise, sigma, shared.labels, self.teacher, critic=critic, known_fake_x0=shared.x0)
        (gradient,) = torch.autograd.grad(self.divergence.student_loss(at).sum(), images)
        return gradient, sigma

    def _labels(self, labels: Tensor | None, batch: Batch, chunk: range, purpose: str) -> Tensor | None:
        """Labels of the student as the teacher takes them."""
        return self.classes(labels, lambda classes: batch.labels(purpose, chunk, LabelLaw.uniform(classes)))

    def conversions(self, model: Generator) -> list[tuple[str, str]]:
        """Lines of the header: how the teacher sees the student's images and classes where they differ."""
        lines = []
        own, seen = (model.img_resolution, model.img_channels), (self.space.resolution, self.space.channels)
        if own != seen:
            colours = {1: "gray", 3: "RGB"}
            made, shown = (f"{size}x{size} {colours.get(depth, f'of {depth} channels')}" for size, depth in (own, seen))
            lines.append(("converted", f"images of {made} to {shown} for the teacher"))
        if self.classes.rule != "same":
            lines.append(("classes", f"the teacher is told {self.classes}"))
        return lines


def space_of(config: TrainConfig, teacher: Denoiser) -> Space:
    """The space that --match, --clip and --clip-return name, in the teacher's size."""
    cls: Any = SPACES[config.match]
    space: Space
    if teacher.space is None:
        space = cls(teacher.img_resolution, teacher.img_channels)
    elif config.match == "pixels":
        space = teacher.space
    else:
        assert isinstance(teacher.space, Latents)
        assert teacher.space.images is not None
        space = cls(*teacher.space.images, teacher.space)
    return Shown(space, config.clip_return) if config.clip else space
