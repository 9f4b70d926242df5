"""The training methods by their --kind, one file each."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.random import stream
from stylegan_di.training import label_laws
from stylegan_di.training.methods.base import Method
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.edm import EDM
from stylegan_di.training.methods.gan import GAN
from stylegan_di.training.teacher_reals import preload

METHODS: dict[str, type[Method]] = {"edm": EDM, "gan": GAN, "di": DiffInstruct}


def build(config: TrainConfig, device: torch.device) -> Method:
    """Opens and constructs everything a run needs.

    Raises:
        UserError: if a file cannot be used.
    """
    dataset = _open_dataset(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(config.seed, "init").integers(2**31)))
        method = METHODS[config.kind].open(config, device, dataset)
    method.set_labels(*label_laws.choose(config, method.dataset, method.conditional("model")))
    return method


def _open_dataset(config: TrainConfig) -> ImageDataset | None:
    """Opens the images of --data; a teacher's samples are drawn by the method, which has the teacher."""
    if config.image_files is None:
        return None
    dataset = ImageDataset(
        config.image_files, use_labels=config.cond, max_size=config.subset, xflip=config.mirror, seed=config.seed
    )
    preload(dataset)
    return dataset
