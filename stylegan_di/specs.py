"""Specs: 'sid:alpha=1.2' on the command line is a frozen dataclass in the code, and its fields say what is accepted.

A table maps names to dataclasses. The text is parsed from the dataclass that it makes: the types are the annotations,
the defaults are the fields' own, and `number` declares the range beside the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from stylegan_di.dnnlib.util import UserError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `open_low` and `open_high` leave the bounds themselves out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return "a finite number"
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.open_low else f"a number from {self.low:g} on"
        start = f"above {self.low:g}" if self.open_low else f"from {self.low:g}"
        return f"a number {start} to {'below ' if self.open_high else ''}{self.high:g}"


FINITE = Range()
POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
SIZE = Range(1, 65536)  # of a batch or a layer


def number(default: float, accepted: Range = FINITE) -> Any:
    """A dataclass field that is a number within a range."""
    return field(default=default, metadata={"range": accepted})


def parse(text: str, table: Mapping[str, type[T]], option: str, whole: str | None = None) -> T:
    """'sid:alpha=1.2' -> table['sid'](alpha=1.2).

    Args:
        text: a name of the table, and after a colon values of its fields, separated by commas.
        table: name -> dataclass.
        option: what the text was given as, such as '--divergence', for messages.
        whole: the text as it was given, where `text` is a part of it.

    Raises:
        UserError: for an unknown name, an unknown field, or a value that the field does not accept.
    """
    name, _, arguments = text.partition(":")
    where = f"{option}={whole or text}"
    if name not in table:
        accepted = f"accepted: {', '.join(table)}{did_you_mean(name, table)}"
        raise UserError(f"{where}: there is no '{name}'; {accepted}")
    cls = table[name]
    known = {found.name: found for found in fields(cls)}  # type: ignore[arg-type]
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for argument in arguments.split(",") if ":" in text else ():
        key = argument.partition("=")[0]
        if key in values:
            raise UserError(f"{where}: '{key}' is given twice; give it once")
        if key not in known:
            accepted = f"accepted: {', '.join(known)}{did_you_mean(key, known)}" if known else "it has no fields"
            raise UserError(f"{where}: '{name}' has no field '{key}'; {accepted}")
        values[key] = _value(known[key], types[key], argument, where)
    try:
        return cls(**values)
    except ValueError as error:  # of values that do not go together
        raise UserError(f"{where}: {error}") from None


def parse_sum(text: str, table: Mapping[str, type[T]], option: str) -> list[tuple[float, T]]:
    """'ikl+0.5*sid:alpha=1.2' -> [(1.0, IKL()), (0.5, SiD(1.2))]; see `parse`."""
    terms = []
    for term in text.split("+"):
        factor, star, spec = term.rpartition("*")
        weight = _number(factor) if star else 1.0
        if weight not in POSITIVE:
            raise UserError(f"{option}={text}: the weight '{factor}' is not {POSITIVE}, such as 0.5*{spec}")
        terms.append((weight, parse(spec, table, option, whole=text)))
    return terms


def usage(table: Mapping[str, type[Any]]) -> str:
    """All names with their fields and defaults, for help: 'ikl:weight=sigma2,f=reverse_kl; sid:alpha=1'."""
    lines = []
    for name, cls in table.items():
        shown = [f"{f.name}={_text(f.default)}" for f in fields(cls) if f.default is not MISSING]
        lines.append(f"{name}:{','.join(shown)}" if shown else name)
    return "; ".join(lines)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(found: Field[Any], annotation: Any, argument: str, where: str) -> Any:
    """A field's value from 'name=text', checked."""
    _, equals, text = argument.partition("=")
    given = argument if equals else f"'{argument}' has no value"
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if text not in choices:
            accepted = f"accepted: {', '.join(choices)}{did_you_mean(text, choices)}"
            raise UserError(f"{where}: {given}; {accepted}")
        return text
    accepted_range = found.metadata.get("range", FINITE)
    value = _number(text, int if annotation is int else float)
    if value not in accepted_range:
        example = f"{found.name}={_text(found.default)}"
        whole = " that is whole" if annotation is int else ""
        raise UserError(f"{where}: {given}; accepted: {accepted_range}{whole}, such as {example}")
    return value


def _number(text: str, convert: Callable[[str], float] = float) -> float:
    """The number that a text is, NaN for none; Python's own spellings such as 1_000 are none."""
    try:
        return convert(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan
