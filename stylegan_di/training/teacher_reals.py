"""A teacher's samples in the place of real images: drawn once and kept (--data=teacher:N), or anew at each step."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import draw_samples, teacher_samples
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.images import from_uint8
from stylegan_di.interfaces import Denoiser
from stylegan_di.sampling.decoded import image_sampler
from stylegan_di.sampling.diffusion_sampler import DPM_SOLVER
from stylegan_di.torch_utils import distributed
from stylegan_di.training.batch import Batch, Reals, RealSource, Samples


def kept_samples(config: TrainConfig, teacher: Denoiser, num: int, device: torch.device) -> ImageDataset:
    """Opens the data set of a teacher's samples with its classes, which are drawn now unless the cache has them."""
    report = PassProgress() if distributed.rank() == 0 else None
    given = "" if teacher.space is None else f"{config.teacher_options}"
    path = teacher_samples(teacher, num, config.seed, device, report, given)
    dataset = ImageDataset(
        path, use_labels=teacher.label_dim > 0, xflip=config.mirror, seed=config.seed, classes=teacher.label_dim or None
    )
    preload(dataset)
    return dataset


def preload(dataset: ImageDataset) -> None:
    """Decodes images that fit in memory now, so that damaged files are found at the start."""
    if dataset.is_cached:
        progress = PassProgress()
        dataset.preload(lambda done, total: progress("Reading images", done, total))


class FreshSamples(RealSource):
    """Draws a teacher's samples for each step (DPM-Solver++(2M), 8 evaluations), classes equally often.

    They follow from the seed and the images seen alone, so a run that is resumed gets the same ones.
    """

    def __init__(self, teacher: Denoiser) -> None:
        self.sampler = image_sampler(teacher, solver=DPM_SOLVER)

    def take(self, batch: Batch) -> Reals:
        def draw(chunk: range) -> Samples:
            images, labels = draw_samples(self.sampler, batch.random("teacher samples", chunk))
            return from_uint8(images), labels

        return draw
