"""Options that are declared once: help, type, range, group and kinds stand beside the default, in the dataclass.

    lr: float = option(1e-3, "Learning rate.", POSITIVE)

From such a field come the command line's option, its place in --help, the check of its value and its row in
docs/options.md. The type is the field's annotation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stylegan_di.dnnlib.util import UserError, did_you_mean, option_name
from stylegan_di.specs import FINITE, Range

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Option:
    """One option, as its field declares it.

    `kinds` are the kinds of training that have it (none: all); `item` is the type of its values, or of its parts where
    it is a list (`many`); `optional`: None is accepted; `choices` are the accepted texts, empty where any is; `join`:
    makes one text, or None, of the texts of an option that may be given more than once; `blank`: an empty text is one.
    """

    name: str
    default: Any
    help: str
    group: str
    kinds: tuple[str, ...]
    accepted: Range
    item: type
    many: bool
    optional: bool
    choices: tuple[str, ...]
    join: Callable[[Sequence[str]], str | None] | None = None
    blank: bool = True

    def check(self, value: Any) -> None:
        """Raises UserError for a value that is not accepted; None is accepted where it is the default."""
        if value is None or isinstance(value, bool):
            return
        for part in value if self.many else (value,):
            if self.choices and part not in self.choices:
                hint = did_you_mean(str(part), self.choices)
                raise UserError(f"{option_name(self.name)}={part}: accepted are {', '.join(self.choices)}{hint}")
            if part == "" and not self.blank:
                raise UserError(f"{option_name(self.name)}= names nothing: give a value, or leave it out")
            if self.item is str and (found := _CONTROLS.search(part)):
                raise UserError(f"{option_name(self.name)}={part[:80]!r}: the character {found[0]!r} is not accepted")
            if self.item in (int, float) and part not in self.accepted:
                raise UserError(f"{option_name(self.name)}={part}: accepted is {self.accepted}")


def option(
    default: Any,
    help: str,
    accepted: Range = FINITE,
    *,
    group: str,
    kinds: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    join: Callable[[Sequence[str]], str | None] | None = None,
    blank: bool = True,
) -> Any:
    """A dataclass field that is an option; see `Option`."""
    declared: dict[str, Any] = {"help": help, "accepted": accepted, "group": group, "kinds": kinds}
    declared |= {"choices": choices, "join": join, "blank": blank}
    return field(default=default, metadata=declared)


def typed(value: Any) -> str:
    """Returns an option's value as it is typed; '' for None."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.12g}"  # to the last digit but for rounding, which 0.0002 * 4096 / 64 has
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@functools.cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The options among a dataclass's fields, in their order."""
    types, options = get_type_hints(cls), []
    for found in fields(cls):
        if "help" not in found.metadata:
            continue
        item, many, choices = _type(types[found.name])
        declared = dict(found.metadata)
        declared["choices"] = declared["choices"] or choices
        declared |= {"item": item, "many": many, "optional": type(None) in get_args(types[found.name])}
        options.append(Option(name=found.name, default=found.default, **declared))
    return tuple(options)


def _type(annotation: Any) -> tuple[type, bool, tuple[str, ...]]:
    """(type of a value or of a part, whether there are many, choices) of an annotation such as int | None."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    origin = get_origin(annotation)
    if origin is Literal:
        return str, False, get_args(annotation)
    if origin is tuple:
        item, _, choices = _type(parts[0])
        return item, True, choices
    return (parts[0] if parts else annotation), False, ()
