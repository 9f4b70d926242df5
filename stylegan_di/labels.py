"""Labels as the networks take them, how often each occurs, and the student's classes as the teacher's (--classes)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import read_json_file, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.random import SampleRandom

MAX_BYTES = 1 << 20  # of the file of --classes
MAX_NAME = 200  # characters of a class's name
MAX_KEPT = 1 << 16  # numbers of label vectors that a snapshot keeps
MAX_TOTAL = 1 << 40  # of all counts

Chosen = int | Tensor  # what images are asked for: a class, or a label [label_dim] itself


def is_name(value: Any) -> bool:
    """Whether a value from outside can be the name of a class, which messages show."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def one_hot(classes: Tensor, label_dim: int) -> Tensor:
    """Converts class indices int64 [n] to labels float32 [n,label_dim] on the same device.

    Unlike torch.nn.functional.one_hot it does not read the indices, so it does not wait for the GPU.
    """
    return (classes[:, None] == torch.arange(label_dim, device=classes.device)).float()


@dataclass(frozen=True, eq=False)
class LabelLaw:
    """How often each label occurs among the images that a generator shall make.

    Args:
        counts: int64 [k] without a common factor, so that equally frequent ones are all 1.
        vectors: the labels [k,label_dim] themselves, float32; None: the classes 0 to k - 1, one-hot.
        names: of the classes; () where they have none.
        is_guess: whether nothing but the number of classes is known.
    """

    counts: np.ndarray
    vectors: Tensor | None = None
    names: tuple[str, ...] = ()
    is_guess: bool = False

    @classmethod
    def uniform(cls, label_dim: int, names: Sequence[str] = ()) -> LabelLaw:
        """All classes equally often, as a guess."""
        return cls(np.ones(label_dim, dtype=np.int64), None, tuple(names), is_guess=True)

    @classmethod
    def of_counts(
        cls, counts: Sequence[int] | np.ndarray, vectors: Tensor | None = None, names: Sequence[str] = ()
    ) -> LabelLaw:
        """Labels as often as `counts` [k] says."""
        counts = np.asarray(counts, dtype=np.int64)
        return cls(counts // np.gcd.reduce(counts), vectors, tuple(names))

    @classmethod
    def of_labels(cls, labels: np.ndarray, label_dim: int, names: Sequence[str] = ()) -> LabelLaw:
        """As often as in a data set's labels: classes int64 [N], or vectors float32 [N,label_dim], one-hot or other."""
        if labels.ndim == 2 and (np.count_nonzero(labels, axis=1) == 1).all() and (labels.max(axis=1) == 1).all():
            labels = labels.argmax(axis=1)
        if labels.ndim == 1:
            return cls.of_counts(np.bincount(labels, minlength=label_dim), names=names)
        vectors, counts = np.unique(labels, axis=0, return_counts=True)
        return cls.of_counts(counts, torch.from_numpy(vectors))

    @property
    def label_dim(self) -> int:
        return len(self.counts) if self.vectors is None else self.vectors.shape[1]

    @property
    def total(self) -> int:
        """How many positions `chosen` takes."""
        return int(self.counts.sum())

    @property
    def empty(self) -> list[int]:
        """The classes that do not occur."""
        return [] if self.vectors is not None else np.flatnonzero(self.counts == 0).tolist()

    @property
    def by_seed(self) -> LabelLaw:
        """What a seed without a class draws from: each class that occurs as often as the others, or the vectors."""
        return self if self.vectors is not None else replace(self, counts=(self.counts > 0).astype(np.int64))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The sums of the first 1, 2, ... counts."""
        return tuple(np.cumsum(self.counts).tolist())

    def of(self, index: Tensor) -> Tensor:
        """The labels [n,label_dim] of the counts with indices int64 [n], on the device of these."""
        return one_hot(index, self.label_dim) if self.vectors is None else self.vectors.to(index.device)[index]

    def on(self, device: torch.device) -> LabelLaw:
        """The same with its vectors on a device, so that drawing copies no table."""
        return self if self.vectors is None else replace(self, vectors=self.vectors.to(device))

    def draw(self, rng: SampleRandom) -> Tensor:
        """Draws labels [n,label_dim], one from each stream."""
        return self.of(rng.choose(self.ends))

    def chosen(self, position: Tensor, chosen: Chosen | None) -> Tensor:
        """Labels [n,label_dim]: of the class or label that is chosen, else at positions [n], 0 to total - 1.

        Among the positions each label is as often as its count says.
        """
        if chosen is None:
            return self.of(torch.searchsorted(torch.tensor(self.ends, device=position.device), position, right=True))
        if isinstance(chosen, Tensor):
            return chosen.to(position.device).expand(len(position), -1)
        return one_hot(torch.full_like(position, chosen), self.label_dim)

    def __str__(self) -> str:
        if self.vectors is not None:
            return f"vectors of {self.label_dim} numbers, {len(self.counts)} different ones"
        shares = self.counts / self.total
        low, high = shares[shares > 0].min(), shares.max()
        often = "equally often" if low == high else f"from {low:.2%} to {high:.2%} of the images"
        empty = self.empty
        listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        return f"{self.label_dim} classes, {often}" + (f"; no image is of class {listed}" if empty else "")

    # In a snapshot.

    def entry(self) -> dict[str, Any]:
        """As plain values; of many vectors, some that are spread evenly over them."""
        counts, vectors = self.counts, self.vectors
        kept: dict[str, Any] = {}
        if vectors is not None:
            every = -(-vectors.numel() // MAX_KEPT)
            counts, kept = counts[::every], {"vectors": vectors[::every].tolist()}
        return {"counts": counts.tolist(), "class_names": list(self.names), "is_guess": self.is_guess} | kept

    @classmethod
    def of_entry(cls, entry: Any, label_dim: int) -> LabelLaw:
        """Reads what `entry` returned, for a network of label_dim.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(entry, Mapping) or not isinstance(entry.get("counts"), list):
            raise ValueError("labels without counts")
        counts, names, vectors = entry["counts"], entry.get("class_names") or [], entry.get("vectors")
        if not all(type(count) is int and count >= 0 for count in counts) or not 0 < sum(counts) < MAX_TOTAL:
            raise ValueError("labels with counts that are none")
        if not isinstance(names, list) or not all(is_name(name) for name in names):
            raise ValueError("class names that are no list of short texts")
        table = None
        if vectors is not None:
            table = torch.tensor(vectors, dtype=torch.float32)
            if table.ndim != 2 or len(table) != len(counts) or not table.isfinite().all():
                raise ValueError("labels whose vectors are not as many as their counts, or not finite")
        law = replace(cls.of_counts(counts, table, names), is_guess=entry.get("is_guess") is True)
        if law.label_dim != label_dim or (names and len(names) != label_dim):
            raise ValueError(f"labels of {law.label_dim} classes and {len(names)} names, for a network of {label_dim}")
        return law

    # On the command line.

    def classes(self, text: str) -> list[int]:
        """The classes of --class: a number, a name, ranges and lists of them: '8', 'bag', '0-9', 'bag,shirt,3'.

        Digits are a class's number, whatever classes are called.

        Raises:
            UserError: there is no such class.
        """
        if self.vectors is not None:
            numbers = f"vectors of {self.label_dim} numbers"
            raise UserError(f"--class={text}: this network's labels are {numbers}; give --label")
        known = {name.lower(): index for index, name in enumerate(self.names) if not name.isdecimal()}
        last = self.label_dim - 1
        if text.strip().lower() in known:  # a name may have a comma or a minus in it
            return [known[text.strip().lower()]]
        found: list[int] = []
        for part in map(str.strip, text.split(",")):
            span = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
            if part.lower() in known:
                found.append(known[part.lower()])
            elif span and int(span[1]) <= int(span[2] or span[1]) <= last:
                found.extend(range(int(span[1]), int(span[2] or span[1]) + 1))
            else:
                close = difflib.get_close_matches(part.lower(), list(known), n=1)
                named = f" or {', '.join(self.names[:20])}" if self.names else ""
                hint = f"; did you mean {self.names[known[close[0]]]}?" if close else ""
                raise UserError(f"--class={text}: this network has the classes 0 to {last}{named}{hint}")
        return list(dict.fromkeys(found))

    def label(self, numbers: Sequence[float]) -> Tensor:
        """The label [label_dim] of --label.

        Raises:
            UserError: it is none of this network.
        """
        if len(numbers) != self.label_dim or not all(map(math.isfinite, numbers)):
            text = ",".join(f"{number:g}" for number in numbers)
            raise UserError(f"--label={text}: accepted are {self.label_dim} finite numbers, this network's labels")
        return torch.tensor(numbers, dtype=torch.float32)


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

    def of_teachers(self, labels: Tensor | None) -> Tensor | None:
        """Labels of the teacher's own samples beside such a student's: theirs, unless it is told none of them."""
        return None if self.rule == "null" else labels

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
    with untrusted(f"--classes={classes}", remedy=remedy):
        listed = read_json_file(classes, MAX_BYTES)
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
