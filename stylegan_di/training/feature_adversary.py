"""Trains a critic on the teacher's features, and computes its gradient in the student's images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.critics.features import FeatureCritic, FeatureCriticSpec
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.diffusion import LogNormalLaw, NoiseLaw
from stylegan_di.interfaces import Denoiser, Space
from stylegan_di.journal.journal import Journal
from stylegan_di.labels import ClassMap, LabelLaw, class_map
from stylegan_di.torch_utils import distributed
from stylegan_di.training.adversary import logistic_update
from stylegan_di.training.batch import Batch, Reals, RealSource, Samples
from stylegan_di.training.instruction import space_of
from stylegan_di.training.optimize import adam
from stylegan_di.training.state import TrainState


class FeatureAdversary:
    """A feature critic in training, with the logistic loss at the noise levels of a law.

    Args:
        spec: the critic's spec.
        teacher: a frozen network that provides the features.
        law: the noise levels, clipped to the teacher's range.
        space, classes: how the teacher sees the student's images and labels.
        teachers_own: whether the real samples are the teacher's, with its own labels.
        turns: the teacher's samples, which take every other step where there are real images too.
    """

    role: ClassVar[str] = "critic"  # of the heads in the training state

    def __init__(
        self,
        spec: FeatureCriticSpec,
        teacher: Denoiser,
        law: NoiseLaw,
        space: Space,
        classes: ClassMap,
        teachers_own: bool = False,
        turns: RealSource | None = None,
    ) -> None:
        self.spec = spec
        self.critic = FeatureCritic(teacher, spec.scales, spec.width)
        self.law = law
        self.space, self.classes = space, classes
        self.teachers_own = teachers_own
        self.turns = turns

    @classmethod
    def configured(
        cls, config: TrainConfig, teacher: Denoiser, label_dim: int, turns: RealSource | None = None
    ) -> FeatureAdversary:
        """Makes the configured critic on the teacher's features; label_dim is the student's."""
        assert config.critic_spec is not None
        return cls(
            config.critic_spec,
            teacher,
            config.critic_law or LogNormalLaw(),
            space_of(config, teacher),
            class_map(config.classes, label_dim, teacher.label_dim),
            teachers_own=samples_wanted(config.data) is not None,
            turns=turns,
        )

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks to include in the training state, by role."""
        return {self.role: self.critic.heads}

    def optimizer(self) -> torch.optim.Optimizer:
        return adam(self.critic.heads, self.spec.lr, beta1=0.0, beta2=0.99)

    def logits(
        self, images: Tensor, labels: Tensor | None, batch: Batch, chunk: range, purpose: str, own: bool = False
    ) -> Tensor:
        """Returns the critic's logits [n,1] of clean images, which are noised here.

        purpose: keys the noise; it ends in '/reals' for real samples. own: whether these are the teacher's.
        """
        own = own and purpose.endswith("/reals")
        x = images if own and self.critic.teacher.space is None else self.space.encode(images)
        if own:
            labels = self.classes.of_teachers(labels)
        else:
            labels = self.classes(labels, lambda classes: batch.labels(purpose, chunk, LabelLaw.uniform(classes)))
        noise, sigma = batch.noise(self.law, purpose, chunk, x, within=self.critic.teacher)
        return self.critic.logits(x, noise, sigma, labels)

    def step(
        self, state: TrainState, batch: Batch, reals: Reals, fakes: Callable[[range], Samples], journal: Journal
    ) -> None:
        """Updates the heads on real samples and on fakes(chunk)."""
        own = self.teachers_own
        if self.turns is not None:
            samples = self.turns.take(batch)  # at each step, so that a resumed run is where this one is
            own = batch.nimg // batch.size % 2 == 1
            reals = samples if own else reals
        logits = partial(self.logits, own=own)
        loss, real_logits, norm = logistic_update(state, self.role, batch, reals, fakes, logits, "critic")
        journal.scalars({"Loss/critic": loss, "Loss/signs/critic_real": real_logits.sign()})
        journal.shared({"Gradient/critic": norm})

    def gradient(
        self, x: Tensor, labels: Tensor | None, batch: Batch, chunk: range, instructed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the gradient of the non-saturating loss in images x, scaled and weighted, and as it is.

        x: must require grad. instructed: the divergence's gradient in x.
        """
        logits = self.logits(x, labels, batch, chunk, "critic/student")
        (natural,) = torch.autograd.grad(loss_gan.generator_logistic(logits).sum(), x)
        scale: Tensor | float = 1.0
        if self.spec.rms or self.spec.share:
            wanted = self.spec.share * _rms(instructed) if self.spec.share else self.spec.rms
            scale = wanted / _rms(natural).clamp_min(1e-12)
        return self.spec.weight * (natural * scale), natural


def _rms(gradient: Tensor) -> Tensor:
    """Returns the root mean square over all processes' elements."""
    power = gradient.square().mean()
    distributed.average([power])
    return power.sqrt()
