"""Trains a discriminator alongside a generator: logistic loss, lazy R1, and ADA's control of p."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from stylegan_di import loss_gan
from stylegan_di.config import TrainConfig
from stylegan_di.critics.discriminator import DiscriminatorCritic
from stylegan_di.data.augment import augment_pipe
from stylegan_di.journal.journal import Journal
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.ops.upfirdn2d import filter2d
from stylegan_di.training.batch import Batch, Reals, Samples
from stylegan_di.training.optimize import adam, apply_gradients, trainable
from stylegan_di.training.state import TrainState

ADA_INTERVAL = 4  # steps between adjustments of p (arXiv 2006.06676, section 3)
ROLE, PIPE, SIGNS = "discriminator", "augment_pipe", "real_signs"  # names in the training state

Logits = Callable[[Tensor, Tensor | None, Batch, range, str], Tensor]  # images, labels, batch, chunk, purpose -> [n,1]


def logistic_update(
    state: TrainState,
    role: str,
    batch: Batch,
    reals: Reals,
    fakes: Callable[[range], Samples],
    logits: Logits,
    purpose: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves a critic by one update of the logistic loss on real samples and on fakes(chunk).

    Args:
        role: of the critic in the state.
        logits: its logits as in training.
        purpose: keys the random numbers of these.

    Returns the loss [n,1], the logits of real samples [n,1], both without graph, and the norm of the gradients [1].
    """
    losses, real = [], []
    with trainable(state.networks[role], train_mode=True):
        for chunk in batch.chunks:
            with torch.no_grad():
                images, labels = fakes(chunk)
            fake_logits = logits(images, labels, batch, chunk, f"{purpose}/fakes")
            real_logits = logits(*reals(chunk), batch, chunk, f"{purpose}/reals")
            loss = loss_gan.discriminator_logistic(fake_logits, real_logits)
            (loss.sum() / batch.local_size).backward()
            losses.append(loss.detach())
            real.append(real_logits.detach())
        norm = apply_gradients(state, role)
    return torch.cat(losses), torch.cat(real), norm


def judged(which: str, logits: Tensor) -> dict[str, Tensor]:
    """Returns what the journal tells of logits, of 'real' or 'fake' images, by the names of stylegan2-ada's."""
    return {f"Loss/scores/{which}": logits, f"Loss/signs/{which}": logits.sign()}


def blur_sigma(config: TrainConfig, nimg: int) -> float:
    """Returns the blur's deviation in pixels after nimg images: it falls linearly to 0."""
    left = 1 - nimg / (config.blur_fade * 1000) if config.blur_fade else 0.0
    return config.blur_sigma * max(left, 0.0)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Filters images [n,C,H,W] by exp2(-(i / sigma)^2) along both axes, zeros around them; the size is kept."""
    reach = int(sigma * 3)
    if reach == 0:
        return images
    f = torch.arange(-reach, reach + 1, device=images.device).div(sigma).square().neg().exp2()
    return filter2d(images, f / f.sum())


class Adversary:
    """A discriminator in training; R1's default weight depends on the images' resolution."""

    role: ClassVar[str] = ROLE

    def __init__(self, config: TrainConfig, network: torch.nn.Module, resolution: int) -> None:
        self.config = config
        pipe = None
        if config.aug != "noaug":
            pipe = augment_pipe(config.augpipe)
            pipe.p.copy_(torch.as_tensor(config.p))
        self.critic = DiscriminatorCritic(network, pipe, config.critic_law)
        default = 0.0002 * resolution**2 / config.batch  # StyleGAN2-ADA's heuristic
        self.gamma = default if config.gamma is None else config.gamma

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks to include in the training state, by role."""
        pipe = self.critic.augment_pipe
        return {ROLE: self.critic.network} | ({} if pipe is None else {PIPE: pipe})

    def optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return adam(
            self.critic.network, config.dlr or config.lr, beta1=config.beta1, beta2=0.99, interval=config.r1_interval
        )

    def totals(self, device: torch.device) -> dict[str, Tensor]:
        """Returns zeros for the sum and count of sign D(real) since p last changed, for the training state."""
        return {SIGNS: torch.zeros(2, device=device)}

    def logits(self, images: Tensor, labels: Tensor | None, batch: Batch, chunk: range, purpose: str) -> Tensor:
        """Returns D's logits [n,1] of images as in training: blurred, augmented, and noised by its noise law."""
        images = blurred(images, blur_sigma(self.config, batch.nimg))
        law = self.critic.noise_law
        if law is None:
            noise, sigma = torch.zeros_like(images), torch.zeros(len(images), device=images.device)
        else:
            noise, sigma = batch.noise(law, f"{purpose}/noise", chunk, images)
        return self.critic.logits(images, noise, sigma, labels, rng=batch.random(purpose, chunk))

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether R1 and the adjustment of the augmentation belong to a step."""
        return bool(self.gamma) and step % self.config.r1_interval == 0, (step + 1) % ADA_INTERVAL == 0

    def hinders_graph(self) -> str:
        """Says why the updates cannot be part of a CUDA graph; '' if they can."""
        if self.critic.augment_pipe is not None:
            return "the augmentation pads images by what it has drawn (--aug=noaug leaves it out)"
        return "the blur of --blur-sigma follows the images seen" if self.config.blur_sigma else ""

    def step(
        self,
        state: TrainState,
        batch: Batch,
        reals: Reals,
        fakes: Callable[[range], Samples],
        journal: Journal,
    ) -> None:
        """Updates the discriminator on real images and fakes(chunk), and R1 and p when they are due."""
        loss, real_logits, norm = logistic_update(state, ROLE, batch, reals, fakes, self.logits, "augment")
        signs = real_logits.sign()
        state.totals[SIGNS] += torch.stack([signs.nan_to_num().sum(), signs.isfinite().sum()])
        journal.scalars({"Loss/D/loss": loss, **judged("real", real_logits)})
        journal.shared({"Gradient/discriminator": norm})
        r1, augmentation = self.due(state.cur_step)
        if r1:
            self._r1_update(state, batch, reals, journal)
        if augmentation:
            self._adjust_augmentation(state, batch.size * ADA_INTERVAL, journal)

    def _r1_update(self, state: TrainState, batch: Batch, reals: Reals, journal: Journal) -> None:
        """Updates the discriminator by the R1 penalty, scaled because it runs only every r1_interval steps."""
        with trainable(self.critic.network, train_mode=True):
            for chunk in batch.chunks:
                images, labels = reals(chunk)
                images = images.detach().requires_grad_()
                logits = self.logits(images, labels, batch, chunk, "augment/r1")
                penalty = loss_gan.r1_penalty(logits, images, self.gamma)
                (penalty.sum() * self.config.r1_interval / batch.local_size).backward()
                journal.scalars({"Loss/r1_penalty": penalty / (self.gamma / 2), "Loss/D/reg": penalty})
            apply_gradients(state, ROLE)

    def _adjust_augmentation(self, state: TrainState, images: int, journal: Journal) -> None:
        """Updates p by ADA's rule from all processes' signs since the last time."""
        config, pipe, signs = self.config, self.critic.augment_pipe, state.totals[SIGNS]
        if config.aug == "ada" and pipe is not None:
            distributed.average([signs])
            mean = (signs[0] / signs[1]).nan_to_num(nan=config.target)
            p = loss_gan.ada_adjust(pipe.p, mean, target=config.target, images=images, ada_kimg=config.ada_kimg)
            pipe.p.copy_(p)
            journal.shared({"Progress/augment": p.clone()})
        signs.zero_()
