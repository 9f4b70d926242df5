"""The training methods by their --kind, one file each."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import FRESH, samples_wanted
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.random import stream
from stylegan_di.snapshots.teachers import open_teachers
from stylegan_di.training import label_laws
from stylegan_di.training.methods.base import Method
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.edm import EDM
from stylegan_di.training.methods.gan import GAN
from stylegan_di.training.teacher_reals import kept_samples

METHODS: dict[str, type[Method]] = {"edm": EDM, "gan": GAN, "di": DiffInstruct}


def build(config: TrainConfig, device: torch.device) -> Method:
    """Opens and constructs everything a run needs.

    Raises:
        UserError: if a file cannot be used.
    """
    dataset = _open_dataset(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(config.seed, "init").integers(2**31)))
        method = METHODS[config.kind].open(config, device, dataset)
    method.set_labels(*label_laws.choose(config, dataset, method.conditional("model")))
    return method


def _open_dataset(config: TrainConfig, device: torch.device) -> ImageDataset | None:
    """Opens the data set. Images that fit in memory are decoded now, so that damaged files are found at the start."""
    if not config.needs_data or config.data is None:
        return None
    num = samples_wanted(config.data)
    if num == FRESH:
        return None
    if num is None:
        dataset = ImageDataset(
            config.data, use_labels=config.cond, max_size=config.subset, xflip=config.mirror, seed=config.seed
        )
    else:
        assert config.teacher is not None
        teacher = open_teachers(config.teacher, config.teacher_options)[0][1]
        dataset = kept_samples(config, teacher, num, device)
    if dataset.is_cached:
        progress = PassProgress()
        dataset.preload(lambda done, total: progress("Reading images", done, total))
    return dataset
