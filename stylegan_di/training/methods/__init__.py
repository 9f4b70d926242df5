"""Methods of training by their --kind, one file each."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.random import stream
from stylegan_di.training.methods.base import Method
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.methods.edm import EDM
from stylegan_di.training.methods.gan import GAN

METHODS: dict[str, type[Method]] = {"edm": EDM, "gan": GAN, "di": DiffInstruct}


def build(config: TrainConfig, device: torch.device) -> Method:
    """Opens and constructs everything a run needs.

    Raises:
        UserError: a file that cannot be used.
    """
    dataset = _open_dataset(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(config.seed, "init").integers(2**31)))
        return METHODS[config.kind].open(config, device, dataset)


def _open_dataset(config: TrainConfig) -> ImageDataset | None:
    """The training's images. Those that fit in memory are decoded now: a damaged file is met before the start."""
    if not config.needs_data or config.data is None:
        return None
    dataset = ImageDataset(
        config.data, use_labels=config.cond, max_size=config.subset, xflip=config.mirror, seed=config.seed
    )
    if dataset.is_cached:
        progress = PassProgress()
        dataset.preload(lambda done, total: progress("Reading images", done, total))
    return dataset
