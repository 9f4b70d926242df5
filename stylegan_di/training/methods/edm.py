"""--kind=edm: trains a denoiser on real images (Karras et al. 2022, arXiv 2206.00364, appendix F)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.snapshots.checkpoint import load_denoiser
from stylegan_di.snapshots.teacher_files import open_latents
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.batch import Batch
from stylegan_di.training.denoising import LOSS, Denoising, new_network
from stylegan_di.training.methods.base import Method, drops_at_random


class EDM(Method):
    """Denoising score matching (`training.denoising`)."""

    watched: ClassVar[Mapping[str, float]] = {LOSS: 100.0}

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        dataset: ImageDataset | None,
        model: Denoiser,
    ) -> None:
        """Takes a Method's arguments and the denoiser to train, whose space is what it sees of the images."""
        super().__init__(config, device, dataset)
        self.denoising = Denoising(config, config.student_law, space=model.space)
        self.model, self.ema = model, model.trainable_copy()
        self.prepare({"model": self.model, "ema": self.ema}, compiled=[self.model])

    @classmethod
    def open(cls, config: TrainConfig, device: torch.device, dataset: ImageDataset | None) -> EDM:
        assert dataset is not None
        model = None if config.transfer is None else load_denoiser(config.transfer)
        space = None
        if config.autoencoder is not None:
            space = open_latents(config.autoencoder, model or dataset.resolution)
        if model is None:
            model = EDMTeacher(new_network(config, dataset, space))
        elif config.augment and not any(name.endswith("map_augment") for name, _ in model.named_modules()):
            raise UserError(
                f"--augment={config.augment:g}: the network of --transfer={config.transfer} is not told of "
                "augmentations; give --augment=0"
            )
        model.space = space
        return cls(config, device, dataset, model)

    def hinders_graph(self) -> str:
        return "--augment draws on the CPU" if self.denoising.augment else drops_at_random(self.model)

    def step(self, batch: Batch, journal: Journal) -> None:
        assert self.reals is not None
        with self.autocast():
            self.denoising.step(self.state, batch, self.reals.take(batch), journal)

    def shown(self) -> Generator:
        return image_sampler(self.ema)

    def entries(self) -> dict[str, torch.nn.Module | None]:
        return {**self.ema.entries()}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"dataset_kwargs": dict(data), "augment_pipe": self.denoising.augment}
