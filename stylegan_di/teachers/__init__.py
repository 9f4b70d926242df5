"""Denoisers that a student learns from, and that a fake score starts from, one kind a file."""

from __future__ import annotations

from stylegan_di.interfaces import Denoiser
from stylegan_di.teachers.edm import EDMTeacher

#: By name; the first whose network a snapshot holds is what the snapshot is opened as.
TEACHERS: dict[str, type[Denoiser]] = {"edm": EDMTeacher}
