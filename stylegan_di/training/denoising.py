"""Trains a denoiser on real images: denoising score matching with EDM's augmentation and label dropout.

Karras et al. 2022, arXiv 2206.00364, appendix F. The teacher that --kind=edm makes, and the one that is trained beside
a student (--teacher=online), are updated here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.data import augment_edm
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.diffusion import NoiseLaw
from stylegan_di.dnnlib.untrusted import brief
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Space
from stylegan_di.journal.journal import Journal
from stylegan_di.loss_di import denoising_loss
from stylegan_di.networks.edm import PRECONDITIONERS, Precond
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.training.batch import Batch, Reals
from stylegan_di.training.optimize import apply_gradients, trainable
from stylegan_di.training.state import TrainState

LOSS = "Loss/loss"  # as EDM calls it


class Denoising:
    """Updates of a denoiser by the denoising loss at the noise levels of a law.

    Args:
        config: the run's options.
        law: the noise levels.
        role: of the denoiser in the training state.
        prefix: of its random numbers' keys.
        space: what the denoiser sees of images; None for their pixels.
    """

    def __init__(
        self,
        config: TrainConfig,
        law: NoiseLaw,
        role: str = "model",
        prefix: str = "",
        space: Space | None = None,
    ) -> None:
        self.label_dropout = config.label_dropout
        self.augment = augment_edm.AugmentPipe(p=config.augment, **augment_edm.TRAINING) if config.augment else None
        self.law = law
        self.role = role
        self.loss = LOSS if role == "model" else f"Loss/{role}"
        self.prefix = prefix
        self.space = space

    def step(self, state: TrainState, batch: Batch, reals: Reals, journal: Journal) -> None:
        """Updates the denoiser on a batch of real images; it is conditioned on their augmentation."""
        model, prefix = state.networks[self.role], self.prefix
        with trainable(model, train_mode=True):
            for chunk in batch.chunks:
                images, labels = reals(chunk)
                if labels is not None and self.label_dropout:
                    kept = batch.random(f"{prefix}label_dropout", chunk).uniform(1) >= self.label_dropout
                    labels = labels * kept
                denoiser: Callable[..., Tensor] = model
                if self.augment is not None:
                    images, augment_labels = self.augment(images, rng=batch.random(f"{prefix}augment", chunk))
                    denoiser = partial(model, augment_labels=augment_labels)
                if self.space is not None:
                    with torch.no_grad():
                        images = self.space.encode(images)
                noise, sigma = batch.noise(self.law, f"{prefix}denoiser", chunk, images)
                batch.seed_dropout(chunk)
                loss = denoising_loss(denoiser, images, noise, sigma, labels, self.law.weight)
                (loss.sum() / batch.local_size).backward()
                per_value = loss.detach() / images[0].numel()
                journal.scalars({self.loss: per_value})
                journal.by_sigma(self.loss, per_value, sigma)
            journal.shared({f"Gradient/{self.role}": apply_gradients(state, self.role)})


def new_network(config: TrainConfig, dataset: ImageDataset, space: Space | None = None) -> Precond:
    """Makes a new network for a data set, or for what a space shows of it.

    Raises:
        UserError: its numbers of channels do not go together.
    """
    side, width, channels = dataset.resolution, dataset.width, dataset.num_channels
    if space is not None:
        side, width, channels = space.resolution, space.resolution, space.channels
    kwargs: dict[str, Any] = dict(
        img_resolution=side,
        img_channels=channels,
        label_dim=dataset.label_dim,
        **ARCHITECTURES[config.arch],
        model_channels=config.model_channels,
        channel_mult=list(config.channel_mult),
        num_blocks=config.num_blocks,
        attn_resolutions=list(config.attn_resolutions),
        dropout=config.dropout,
    )
    if config.augment:
        kwargs["augment_dim"] = augment_edm.TRAINING_LABELS
    if width != side:
        kwargs["img_width"] = width
    try:
        with torch.device("meta"), torch.no_grad():  # no memory, no arithmetic
            PRECONDITIONERS[config.precond](**kwargs)(torch.ones(1, channels, side, width), torch.ones(1))
    except Exception as error:  # whatever PyTorch raises for shapes that do not fit
        factors = ",".join(map(str, config.channel_mult))
        raise UserError(
            f"--model-channels={config.model_channels} with --channel-mult={factors}: a U-Net cannot have so many "
            f"channels ({brief(error)}); choose multiples of 32, or of 4 where none is above 128"
        ) from error
    return PRECONDITIONERS[config.precond](**kwargs)
