"""What the scripts' command lines share, on top of click: lists of seeds, users' mistakes, the default device."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click
import torch

from dnnlib.util import UserError

MAX_SEED = 2**32 - 1  # numpy's RandomState takes no larger ones
MAX_SEEDS = 1_000_000

P = ParamSpec("P")
R = TypeVar("R")


def parse_seeds(text: str) -> list[int]:
    """'0,3,10-20' -> [0, 3, 10, 11, ..., 20]; ranges include both ends.

    Raises:
        UserError: for anything else, seeds above 2^32 - 1, or more than a million of them.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,20})(?:\s*-\s*([0-9]{1,20}))?\s*", part)
        if match is None:
            raise UserError(f"'{text}' holds '{part}'; accepted are whole numbers and ranges, such as 0,3,10-20")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"'{text}' holds '{part}', a range that runs backwards; write {last}-{first}")
        if last > MAX_SEED:
            raise UserError(f"'{text}' holds '{part}'; seeds go from 0 to {MAX_SEED}")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise UserError(f"'{text}' holds more than {MAX_SEEDS} seeds; split it into several calls")
        seeds.extend(range(first, last + 1))
    return seeds


class Seeds(click.ParamType):
    """A click type: text as `parse_seeds` reads it, to a list of seeds."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return parse_seeds(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


def user_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a command: a UserError becomes one line 'Error: ...' on stderr and exit status 2, no traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            click.echo(f"Error: {' '.join(str(error).splitlines())}", err=True)
            sys.exit(2)

    return wrapper


def default_device() -> str:
    """'cuda' on a machine where PyTorch can use it, else 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"
