"""What the command-line scripts share: their seeds, their errors, their device."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from stylegan_di.dnnlib.util import UserError

MAX_SEED = 2**32 - 1  # what numpy's RandomState takes
MAX_SEEDS = 1_000_000

Function = TypeVar("Function", bound=Callable[..., Any])


def parse_seeds(text: str) -> list[int]:
    """'0,3,10-12' -> [0, 3, 10, 11, 12], in the order given.

    Raises:
        UserError: if the text is no such list, or names a seed above 2^32 - 1 or more than a million of them.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if match is None:
            raise UserError(
                f"seeds '{text[:80]}': {part.strip()[:40]!r} is no seed; accepted are whole numbers "
                f"from 0 to {MAX_SEED} and ranges of them, such as 0,3,10-20"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_SEED or first > MAX_SEED:
            raise UserError(f"seeds '{text[:80]}': {part.strip()} is beyond {MAX_SEED}, the largest seed")
        if last < first:
            raise UserError(f"seeds '{text[:80]}': the range {part.strip()} runs backwards; write {last}-{first}")
        if len(seeds) + last - first + 1 > MAX_SEEDS:
            raise UserError(f"seeds '{text[:80]}': more than {MAX_SEEDS:,} seeds; ask for fewer at a time")
        seeds.extend(range(first, last + 1))
    return seeds


class Seeds(click.ParamType):
    """An option's value such as '0,3,10-20', as a list of seeds (see `parse_seeds`)."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return parse_seeds(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class Device(click.ParamType):
    """'cpu', 'cuda' or 'cuda:N', of a device that is there."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", value)
        if match is None:
            self.fail(f"'{value}' is no device; accepted are cpu, cuda and cuda:N", param, ctx)
        count = torch.cuda.device_count() if value != "cpu" else 1
        if count <= int(match[1] or 0):
            self.fail(f"'{value}': PyTorch finds {count} GPUs here; use cpu or another number", param, ctx)
        return value


def writable_folder(option: str, path: Path) -> Path:
    """The folder of an option, made where it is missing.

    Raises:
        UserError: if it cannot be made or files cannot be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{option}: cannot write into {path} ({error.strerror}); choose another folder") from None


class _UserMistake(click.ClickException):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click declares it for the class


def user_errors(function: Function) -> Function:
    """Makes a command end with one line on stderr, 'Error: ...', and the error's status where it raises a UserError."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise _UserMistake(" ".join(str(error).splitlines()), error.status) from None

    return wrapped  # type: ignore[return-value]


def default_device() -> str:
    """'cuda' where PyTorch finds a GPU, else 'cpu'."""
    return "cuda" if torch.cuda.is_available() else "cpu"
