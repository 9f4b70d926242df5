"""Opens what --teacher names: one teacher, or several, mixed where they see the same images."""

from __future__ import annotations

from stylegan_di.interfaces import Denoiser
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.teachers.mixed import MixedDenoiser, TeacherTerm, parse_teachers


def open_teachers(text: str, options: TeacherOptions | None = None) -> list[tuple[float, Denoiser]]:
    """Opens the teachers of --teacher, in evaluation mode, on the CPU.

    Those that see the same pixels and classes become one mixed denoiser; the others, and each with latents of its own,
    instruct beside it, each with a fake score of its own. `options`: what each is given besides its file.

    Returns pairs of a weight and a denoiser; the weights sum to 1.

    Raises:
        UserError: if a file cannot be used, or the terms make no mixture.
    """
    groups: dict[tuple[int, ...], list[tuple[TeacherTerm, Denoiser]]] = {}
    for index, term in enumerate(parse_teachers(text)):
        opened = open_teacher(term.source, options)
        shape = (*opened.image_shape, opened.label_dim)
        own = () if opened.space is None else (index,)
        groups.setdefault(shape + own, []).append((term, opened))
    total = sum(term.weight for group in groups.values() for term, _ in group)
    found = []
    for group in groups.values():
        terms, denoisers = zip(*group, strict=True)
        alone = len(group) == 1 and terms[0].covers_all
        denoiser = denoisers[0] if alone else MixedDenoiser(denoisers, terms)
        found.append((sum(term.weight for term in terms) / total, denoiser))
    return found
