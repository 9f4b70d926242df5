"""--kind=edm: trains a denoiser on real images (Karras et al. 2022, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.data import augment_edm
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.diffusion import NOISE_LAWS
from stylegan_di.interfaces import Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.loss_di import denoising_loss
from stylegan_di.networks.edm import PRECONDITIONERS, Precond
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.specs import parse
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods.base import Method
from stylegan_di.training.optimize import apply_gradients, trainable

LOSS = "Loss/denoising"


class EDM(Method):
    """Denoising score matching, with EDM's augmentation and label dropout."""

    watched: ClassVar[Mapping[str, float]] = {LOSS: 100.0}

    def __init__(
        self, config: TrainConfig, device: torch.device, dataset: ImageDataset | None, model: EDMTeacher
    ) -> None:
        """Takes a Method's arguments and the denoiser to train."""
        super().__init__(config, device, dataset)
        self.augment = None
        if config.augment:
            self.augment = augment_edm.AugmentPipe(p=config.augment, **augment_edm.TRAINING)
        self.law = parse(config.noise_law, NOISE_LAWS, "--noise-law")
        self.model, self.ema = model, copy.deepcopy(model)
        self.prepare({"model": self.model, "ema": self.ema}, compiled=[self.model])

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> EDM:
        assert dataset is not None
        return cls(config, device, dataset, EDMTeacher(_new_network(config, dataset)))

    def step(self, batch: Batch, journal: Journal) -> None:
        """Updates the model by the denoising loss; the model is conditioned on the augmentation."""
        assert self.reals is not None
        reals = self.reals.take(batch)
        with self.autocast(), trainable(self.model, train_mode=True):
            for chunk in batch.chunks:
                images, labels = reals(chunk)
                if labels is not None and self.config.label_dropout:
                    labels = labels * (batch.random("label_dropout", chunk).uniform(1) >= self.config.label_dropout)
                denoiser: Callable[..., Tensor] = self.model
                if self.augment is not None:
                    images, augment_labels = self.augment(images, rng=batch.random("augment", chunk))
                    denoiser = partial(self.model, augment_labels=augment_labels)
                noise, sigma = batch.noise(self.law, "denoiser", chunk, images)
                batch.seed_dropout(chunk)
                loss = denoising_loss(denoiser, images, noise, sigma, labels, self.law.weight)
                (loss.sum() / batch.local_size).backward()
                journal.scalars({LOSS: loss.detach()})
                journal.by_sigma(LOSS, loss, sigma)
            journal.shared({"Gradient/model": apply_gradients(self.state, "model")})

    def shown(self) -> Generator:
        return DiffusionSampler(self.ema)

    def entries(self) -> dict[str, torch.nn.Module | None]:
        return {**self.ema.entries()}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"dataset_kwargs": dict(data), "augment_pipe": self.augment}


def _new_network(config: TrainConfig, dataset: ImageDataset) -> Precond:
    kwargs: dict[str, Any] = dict(
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
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
    return PRECONDITIONERS[config.precond](**kwargs)
