"""Generators that a teacher instructs, one kind a file."""

from __future__ import annotations

from stylegan_di.interfaces import Generator
from stylegan_di.students.fresh import DecoderStudent, FlowStudent, RadianceStudent
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.r3gan import R3GANStudent
from stylegan_di.students.refiner import RefinerStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import StyleGAN3Student

#: By name; the first whose network a snapshot holds is what the snapshot is opened as.
STUDENTS: dict[str, type[Generator]] = {
    "stylegan2": StyleGAN2Student,
    "stylegan3": StyleGAN3Student,
    "r3gan": R3GANStudent,
    "one-step": OneStepStudent,
    "refiner": RefinerStudent,
    "decoder": DecoderStudent,
    "flow": FlowStudent,
    "radiance": RadianceStudent,
}
