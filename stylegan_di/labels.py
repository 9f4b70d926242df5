"""Class labels as the networks take them, and the student's classes as the teacher's (--classes)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import Budget, open_untrusted, read_json, untrusted
from stylegan_di.dnnlib.util import UserError

MAX_BYTES = 1 << 20  # of the file of --classes


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Converts class indices int64 [n] to labels float32 [n,label_dim] on the same device.

    Unlike torch.nn.functional.one_hot it does not read the indices, so it does not wait for the GPU.
    """
    return (classes[:, None] == torch.arange(label_dim, device=classes.device)).float()


def chosen_labels(drawn: Tensor, class_index: int | None, label_dim: int) -> Tensor:
    """Returns labels float32 [n,label_dim] of class_index, or if it is None of the drawn classes, int64 [n]."""
    return one_hot(drawn if class_index is None else torch.full_like(drawn, class_index), label_dim)


@dataclass(frozen=True)
class ClassMap:
    """The student's labels as its teacher takes them.

    Args:
        rule: 'same'; 'null': the teacher's null label for all; 'drawn': one of the teacher's classes, uniformly, for
            each sample; 'table'.
        table: labels of the teacher [student's classes, teacher's classes] for 'table'; zeros are the null label.
        label_dim: the teacher's classes, for 'drawn'.
    """

    rule: str = "same"
    table: Tensor | None = None
    label_dim: int = 0

    def __call__(self, labels: Tensor | None, draw: Callable[[int], Tensor | None]) -> Tensor | None:
        """Maps labels [n,student's classes] to [n,teacher's classes]; draw(k) draws n labels of k classes."""
        if self.rule == "drawn":
            return draw(self.label_dim)
        if self.table is not None and labels is not None:
            return labels @ self.table.to(labels)
        return labels if self.rule == "same" else None

    def __str__(self) -> str:
        if self.table is None:
            return {"null": "the null label for all", "drawn": f"drawn from {self.label_dim}"}.get(self.rule, self.rule)
        return ", ".join(f"{own}->{int(row.argmax()) if row.any() else 'null'}" for own, row in enumerate(self.table))


def class_map(classes: str | None, student: int, teacher: int) -> ClassMap:
    """Makes the map of --classes: null, drawn, or a JSON file, a list of the teacher's class (or null) for each class.

    Args:
        classes: the option; None where the classes are the same.
        student, teacher: their numbers of classes, 0: unconditional.

    Raises:
        UserError: the numbers differ and there is no option, or it cannot be used for them.
    """
    if classes is None:
        if student != teacher:
            raise UserError(
                f"classes {teacher} against {student}; choose a teacher trained on classes like the GAN's, or say what "
                "the teacher is told: --classes=null, drawn, or a JSON list of its class for each of the GAN's"
            )
        return ClassMap()
    if classes == "null":
        return ClassMap("null")
    if teacher == 0:
        raise UserError(f"--classes={classes}: the teacher has no classes; accepted is null")
    if classes == "drawn":
        return ClassMap("drawn", label_dim=teacher)
    remedy = f"Accepted are null, drawn, or a file that is a JSON list of {student} classes."
    if not Path(classes).is_file():
        raise UserError(f"--classes={classes}: there is no such file. {remedy}")
    with untrusted(f"--classes={classes}", remedy=remedy), open_untrusted(classes, MAX_BYTES) as (file, size):
        listed = read_json(file.read(), Budget(size))
    return ClassMap("table", _table(listed, classes, student, teacher))


def _table(listed: object, name: str, student: int, teacher: int) -> Tensor:
    """The labels of a JSON list, checked."""

    def fits(value: object) -> bool:
        return value is None or (type(value) is int and 0 <= value < teacher)

    if not isinstance(listed, Sequence) or len(listed) != student or not all(map(fits, listed)):
        raise UserError(
            f"--classes={name}: accepted is a JSON list of {student} numbers from 0 to {teacher - 1}, or null, one for "
            "each class of the GAN"
        )
    table = torch.zeros(student, teacher)
    for own, value in enumerate(listed):
        if value is not None:
            table[own, value] = 1
    return table
