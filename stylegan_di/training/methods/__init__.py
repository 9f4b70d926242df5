"""The training methods by their --kind, one file each."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import samples_wanted, teacher_samples
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.random import stream
from stylegan_di.snapshots.teachers import open_teachers
from stylegan_di.torch_utils import distributed
from stylegan_di.training import label_laws
from stylegan_di.training.methods.base import Method
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.edm import EDM
from stylegan_di.training.methods.gan import GAN

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
    progress = PassProgress()
    path, use_labels, classes = config.data, config.cond, None
    if (num := samples_wanted(config.data)) is not None:
        assert config.teacher is not None
        teacher = open_teachers(config.teacher, config.teacher_options)[0][1]
        use_labels, classes = teacher.label_dim > 0, teacher.label_dim or None
        report = progress if distributed.rank() == 0 else None
        given = "" if teacher.space is None else f"{config.teacher_options}"
        path = str(teacher_samples(teacher, num, config.seed, device, report, given))
    dataset = ImageDataset(
        path, use_labels=use_labels, max_size=config.subset, xflip=config.mirror, seed=config.seed, classes=classes
    )
    if dataset.is_cached:
        dataset.preload(lambda done, total: progress("Reading images", done, total))
    return dataset
