"""Trains R3GAN's discriminator alongside a generator: relativistic loss with R1 and R2 in every step.

Huang et al. 2024 (arXiv 2501.05441, section 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.journal.journal import Journal
from stylegan_di.training.adversary import ROLE, Adversary, judged
from stylegan_di.training.batch import Batch, Reals, Samples
from stylegan_di.training.optimize import adam, apply_gradients, trainable
from stylegan_di.training.schedule import annealing
from stylegan_di.training.state import TrainState

ANNEALED_GAMMA = 0.1  # the factor on gamma where --anneal ends


class RelativisticAdversary(Adversary):
    """A discriminator whose logits count in pairs: a real image's above a generated one's."""

    def optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return adam(self.critic.network, config.dlr or config.lr, beta1=config.beta1, beta2=config.beta2)

    def set_probability(self, nimg: int) -> None:
        """Sets the probability of augmentations after nimg images."""
        config, pipe = self.config, self.critic.augment_pipe
        if pipe is not None:
            pipe.p.fill_(config.p * (annealing(nimg, config.anneal) if config.anneal else 1))

    def gamma_after(self, nimg: int) -> float:
        """Returns the weight of both penalties after nimg images."""
        return self.gamma * (1 - (1 - ANNEALED_GAMMA) * annealing(nimg, self.config.anneal))

    def generator_loss(
        self, fakes: Tensor, reals: Tensor, labels: Tensor | None, batch: Batch, chunk: range
    ) -> tuple[Tensor, Tensor]:
        """Returns the generator's loss of each pair and the logits of the generated images, both [n,1]."""
        with torch.no_grad():
            real_logits = self.logits(reals, labels, batch, chunk, "augment/generator/reals")
        logits = self.logits(fakes, labels, batch, chunk, "augment/generator")
        return loss_gan.generator_relativistic(logits, real_logits), logits

    def step(
        self, state: TrainState, batch: Batch, reals: Reals, fakes: Callable[[range], Samples], journal: Journal
    ) -> None:
        """Updates the discriminator on pairs of real images and fakes(chunk), which have the real ones' labels."""
        gamma = self.gamma_after(batch.nimg)
        with trainable(self.critic.network, train_mode=True):
            for chunk in batch.chunks:
                with torch.no_grad():
                    generated, _ = fakes(chunk)
                images, labels = reals(chunk)
                pair = [image.detach().requires_grad_() for image in (images, generated)]
                real_logits = self.logits(pair[0], labels, batch, chunk, "augment/reals")
                fake_logits = self.logits(pair[1], labels, batch, chunk, "augment/fakes")
                loss = loss_gan.discriminator_relativistic(fake_logits, real_logits).squeeze(1)
                r1 = loss_gan.r1_penalty(real_logits, pair[0], gamma)
                r2 = loss_gan.r1_penalty(fake_logits, pair[1], gamma)
                ((loss + r1 + r2).sum() / batch.local_size).backward()
                journal.scalars({
                    "Loss/D/loss": loss, "Loss/r1_penalty": r1 / (gamma / 2), "Loss/r2_penalty": r2 / (gamma / 2),
                    **judged("real", real_logits),
                })  # fmt: skip
            journal.shared({"Gradient/discriminator": apply_gradients(state, ROLE)})
        pipe = self.critic.augment_pipe
        if pipe is not None:
            journal.shared({"Progress/augment": pipe.p.clone()})
