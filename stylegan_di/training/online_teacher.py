"""--teacher=online: a teacher that is trained from --data beside the student, for whoever has images but no teacher.

Its average over time instructs the student. It learns alone for --teacher-warmup, after which the fake score starts
as a copy of it.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.journal.journal import Journal
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.batch import Batch, Reals
from stylegan_di.training.denoising import Denoising
from stylegan_di.training.optimize import adam
from stylegan_di.training.schedule import ema_beta, update_ema
from stylegan_di.training.state import TrainState

AVERAGE = "teacher_ema"  # its role in the training state


class OnlineTeacher:
    """A denoiser in training and its average, which is the teacher.

    Args:
        config: the run's options.
        network: the denoiser at its start.
    """

    role: ClassVar[str] = "teacher"  # of the denoiser in the training state

    def __init__(self, config: TrainConfig, network: EDMTeacher) -> None:
        self.config = config
        self.network, self.average = network, copy.deepcopy(network)
        self.denoising = Denoising(config, config.fake_law, self.role, prefix="teacher/")
        self.networks = {self.role: self.network, AVERAGE: self.average}

    def optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return adam(self.network, config.teacher_lr or config.lr, beta1=config.beta1, beta2=config.beta2)

    def step(self, state: TrainState, batch: Batch, reals: Reals, journal: Journal) -> None:
        """Updates the denoiser on real images, then its average."""
        self.denoising.step(state, batch, reals, journal)
        config = self.config
        beta = ema_beta(batch.size, halflife_kimg=config.ema, rampup=config.ema_rampup, nimg=batch.nimg)
        update_ema(self.average, self.network, beta)

    def warms_up(self, nimg: int) -> bool:
        """Whether only the teacher learns when `nimg` images have been seen."""
        return nimg < self.config.teacher_warmup * 1000

    def ends_warmup(self, nimg: int, batch: int) -> bool:
        """Whether the step that begins at `nimg` images is the first with a student."""
        return bool(self.config.teacher_warmup) and not self.warms_up(nimg) and self.warms_up(nimg - batch)
