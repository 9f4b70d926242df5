"""The generator that --kind=di trains: a GAN, a refiner, the teacher's network in one step, or a new network."""

from __future__ import annotations

import torch

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.snapshots.checkpoint import as_generator, load_snapshot
from stylegan_di.specs import parse
from stylegan_di.students import STUDENTS
from stylegan_di.students.fresh import FRESH_STUDENTS
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.refiner import RefinerStudent


def open_student(config: TrainConfig, teacher: Denoiser | None) -> tuple[Generator, torch.nn.Module | None]:
    """Returns the generator to train, and the discriminator of its file, None where it has none.

    teacher: whose network or images the student is made from where there is no GAN, or only with it.
    """
    if config.gan_pkl is None:
        assert teacher is not None
        student: Generator = (
            _new_student(config.student, teacher) if config.makes_student
            else OneStepStudent.of_teacher(teacher, config.sigma_init, config.student_steps)
        )  # fmt: skip
        student.known_labels = teacher.known_labels
        return student, None
    snapshot = load_snapshot(config.gan_pkl)
    gan = as_generator(snapshot)
    if config.student == "refiner":
        assert teacher is not None
        known = gan.known_labels
        gan = RefinerStudent.of(gan, teacher, config.sigma_init)
        gan.known_labels = known
    return gan, snapshot.networks.get("D")  # that it has one where it is needed, preflight checks


def _new_student(student: str, teacher: Denoiser) -> Generator:
    """Makes the new network of --student for the teacher's images and classes."""
    spec = parse(student, FRESH_STUDENTS, "--student")
    _, height, width = teacher.image_shape
    if width != height:
        raise UserError(
            f"--student={student} makes square images, and the teacher's are {width}x{height}: leave it out, for a "
            "student that is a copy of the teacher's network"
        )
    try:
        network = spec.network(
            img_resolution=teacher.img_resolution, img_channels=teacher.img_channels, label_dim=teacher.label_dim
        )
    except ValueError as error:
        raise UserError(f"--student={student}: {error}") from None
    found = next(filter(None, (role.of_network(network, {}) for role in STUDENTS.values())))
    return found.eval()
