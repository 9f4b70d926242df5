"""An instruction: one teacher trains a student through a fake score, which learns the student's distribution."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylegan_di.diffusion import NoiseLaw
from stylegan_di.interfaces import Critic, Denoiser, Space
from stylegan_di.labels import ClassMap, LabelLaw
from stylegan_di.loss_di import Divergence, Noised
from stylegan_di.training.batch import Batch, Samples


@dataclass
class Instruction:
    """A teacher with its space, fake score, divergence and weight. A training has one or several of these.

    Teacher and fake score see the student's images in `space`, with labels by `classes`. `role` names the fake score in
    the training state and keys its random numbers.
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

    def score_loss(
        self, samples: Samples, batch: Batch, chunk: range, purpose: str, reals: Samples | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the fake score's loss [n] on a chunk's samples, whose graph is not used, and the noise levels [n]."""
        images, labels = samples
        with torch.no_grad():
            x = self.space.encode(images)
            noise, sigma = batch.noise(self.fake_law, purpose, chunk, x, within=self.teacher)
            labels = self._labels(labels, batch, chunk, purpose)
            seen = None
            if reals is not None:
                own = self._labels(reals[1], batch, chunk, f"{purpose}/reals")
                seen = Noised(self.space.encode(reals[0]), noise, sigma, own)
        at = Noised(x, noise, sigma, labels)
        return self.divergence.score_loss(self.fake_score, at, self.fake_law.weight, seen), sigma

    def gradient(
        self, images: Tensor, labels: Tensor | None, batch: Batch, chunk: range, purpose: str, critic: Critic | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the divergence's gradient in a chunk's images, which must require grad, and the noise levels [n]."""
        x = self.space.encode(images)
        noise, sigma = batch.noise(self.student_law, purpose, chunk, x, within=self.teacher)
        labels = self._labels(labels, batch, chunk, purpose)
        differentiable = self.divergence.differentiable
        at = Noised(x, noise, sigma, labels, self.teacher, self.fake_score, critic, differentiable)
        (gradient,) = torch.autograd.grad(self.divergence.student_loss(at).sum(), images)
        return gradient, sigma

    def _labels(self, labels: Tensor | None, batch: Batch, chunk: range, purpose: str) -> Tensor | None:
        """Labels of the student as the teacher takes them."""
        return self.classes(labels, lambda classes: batch.labels(purpose, chunk, LabelLaw.uniform(classes)))
