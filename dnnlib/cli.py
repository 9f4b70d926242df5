"""Helpers that the command-line scripts share, for seeds, errors and devices."""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from stylegan_di.dnnlib.terminal import one_line, plain_output
from stylegan_di.dnnlib.util import DEVICE, UserError, did_you_mean, option_name

MAX_SEED = 2**32 - 1  # the largest seed of numpy's RandomState
MAX_SEEDS = 1_000_000

Function = TypeVar("Function", bound=Callable[..., Any])


def help_of(doc: str | None) -> str:
    """Returns a module's docstring as the text of --help, where indented lines, the examples, are not joined."""
    return (doc or "").replace("\n    ", "\n\n    ")


def parse_seeds(text: str) -> list[int]:
    """Parses '0,3,10-12' as [0, 3, 10, 11, 12], in the order given.

    Raises:
        UserError: if the text is not such a list, or names a seed above 2^32 - 1 or more than a million seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        if match is None:
            raise UserError(
                f"seeds '{text[:80]}': {part.strip()[:40]!r} is not a seed; accepted are whole numbers "
                f"from 0 to {MAX_SEED} and ranges of them, such as 0,3,10-20"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last > MAX_SEED or first > MAX_SEED:
            raise UserError(f"seeds '{text[:80]}': {part.strip()} is above {MAX_SEED}, the largest seed")
        if last < first:
            raise UserError(f"seeds '{text[:80]}': the range {part.strip()} runs backwards; write {last}-{first}")
        if len(seeds) + last - first + 1 > MAX_SEEDS:
            raise UserError(f"seeds '{text[:80]}': more than {MAX_SEEDS:,} seeds; ask for fewer at a time")
        seeds.extend(range(first, last + 1))
    return seeds


class Seeds(click.ParamType):
    """The type of an option that takes a list of seeds such as '0,3,10-20' (see `parse_seeds`)."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return parse_seeds(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class Device(click.ParamType):
    """The type of an option that takes 'cpu', 'cuda', 'cuda:N' or 'mps' and refuses devices that do not exist."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(DEVICE, value)
        if match is None:
            self.fail(f"'{value}' is not a device; accepted are cpu, cuda, cuda:N and mps", param, ctx)
        if value == "mps" and not torch.backends.mps.is_available():
            self.fail("'mps': PyTorch finds no GPU of Apple's here; use cpu", param, ctx)
        count = torch.cuda.device_count() if value.startswith("cuda") else 1
        if count <= int(match[1] or 0):
            self.fail(f"'{value}': PyTorch finds {count} GPUs here; use cpu or another number", param, ctx)
        return value


class Choice(click.Choice):
    """One of some texts; one that is close to another text is suggested."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        hint = did_you_mean(str(value), map(str, self.choices))
        return message.rstrip(".") + hint if hint else message


class CommaList(click.ParamType):
    """'a,b' -> ('a', 'b'); 'none' -> (); spaces around the parts do not count. Parts are one of `choices`, if given."""

    name = "list"

    def __init__(self, item: type, choices: Sequence[str] = ()) -> None:
        self.item = item
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        parts = [part.strip() for part in value.split(",")]
        try:
            if "" in parts:
                raise ValueError("an empty part")
            if unknown := [part for part in parts if self.choices and part not in self.choices]:
                hint = did_you_mean(unknown[0], self.choices)
                self.fail(f"{unknown[0]!r} is not one of {', '.join(map(repr, self.choices))}{hint}", param, ctx)
            return tuple(self.item(part) for part in parts)
        except ValueError:
            self.fail(f"'{value}' is not a comma-separated list of {self.item.__name__}", param, ctx)


class DeclaredOption(click.Option):
    """A click option of an option that is declared elsewhere (`stylegan_di.options.Option`)."""

    def __init__(self, _names: Any, declared: Any, default_of: Callable[[Any, str | None], str]) -> None:
        if declared.name == "device":
            kind: Any = Device()
        elif declared.many:
            kind = CommaList(declared.item, declared.choices)
        else:
            kind = Choice(declared.choices) if declared.choices else declared.item
        names = [option_name(declared.name), declared.name]
        super().__init__(names, type=kind, help=declared.help, multiple=declared.join is not None)
        if declared.join is not None:
            self.callback = lambda ctx, param, value: declared.join(value)
        self.declared = declared
        self.default_of = default_of

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        default = self.default_of(self.declared, ctx.meta.get("kind"))
        return (record[0], f"{record[1]}  [default: {default}]") if record and default else record


def declared_options(
    options: Iterable[Any], default_of: Callable[[Any, str | None], str]
) -> Callable[[Function], Function]:
    """Gives a command an option for each of those declared.

    default_of(declared, kind) is what --help says of the default, '' for nothing.
    """
    every = list(options)

    def decorate(function: Function) -> Function:
        for declared in reversed(every):
            function = click.option(cls=DeclaredOption, declared=declared, default_of=default_of)(function)
        return function

    return decorate


class GroupedCommand(click.Command):
    """A command whose --help shows declared options in their groups, and with --kind only those of that kind.

    Args:
        kind: that of a command without --kind.
        elsewhere: what to do instead of options that similar programs have, by their names.
    """

    def __init__(self, *args: Any, kind: str | None = None, elsewhere: Mapping[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.kind = kind
        self.elsewhere = elsewhere or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        kinds = [value for flag, value in pairwise([*args, ""]) if flag == "--kind"]
        kinds += [arg.partition("=")[2] for arg in args if arg.startswith("--kind=")]
        known = next((p.type.choices for p in self.params if isinstance(p.type, click.Choice) and p.name == "kind"), ())
        ctx.meta["kind"] = next((kind for kind in kinds if kind in known), self.kind)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in self.elsewhere:
                raise
            remedy = self.elsewhere[error.option_name]
            raise click.UsageError(f"No such option '{error.option_name}': {remedy}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        kind = ctx.meta.get("kind")
        for parameter in self.get_params(ctx):
            declared = getattr(parameter, "declared", None)
            kinds = () if declared is None else declared.kinds
            record = parameter.get_help_record(ctx)
            if record is None or (kind is not None and kinds and kind not in kinds):
                continue
            title = "Options" if declared is None else declared.group
            note = f"[{', '.join(kinds)}] " if kinds and kind is None else ""
            groups.setdefault(title, []).append((record[0], note + record[1]))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def writable_folder(option: str, path: Path) -> Path:
    """Returns an option's folder, which is made if it is missing.

    Raises:
        UserError: if it cannot be made or files cannot be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"{option}: cannot write into {path} ({error.strerror}); choose another folder") from None


def at_home(value: Any) -> Any:
    """Puts the home folder for ~ where a path begins, as in ~/a.pkl, 0.7*~/a.pkl, vgg16=~/a.pt,lpips=~/b.pt.

    Shells do that at the beginning of a word only, and so not in --data=~/a.zip.
    """
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    if isinstance(value, Path):
        return Path(at_home(str(value)))
    if isinstance(value, str):
        return re.sub(r"(?<![^=*,])~(?=[/\\]|$)", lambda _: os.path.expanduser("~"), value)
    return value


def message_of(error: UserError) -> str:
    """Returns an error's message as it is printed: one line, or one a problem."""
    return "\n".join(map(one_line, error.lines()))


class _UserMistake(click.ClickException):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click declares it as a class attribute


def user_errors(function: Function) -> Function:
    """Makes a command that raises a UserError end with its lines on stderr, 'Error: ...', and the error's status.

    The command gets the option --debug, with which the traceback and its causes come before them. In the values of
    its options ~ is the home folder. Of what is printed, characters that would steer a terminal are shown as escapes,
    and what the output cannot encode is replaced by '?'.
    """

    @functools.wraps(function)
    def wrapped(**options: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):  # stderr replaces on its own
            sys.stdout.reconfigure(errors="replace")
        try:
            with plain_output():
                return function(**{name: at_home(value) for name, value in options.items()})
        except UserError as error:
            if click.get_current_context().meta.get("debug"):
                traceback.print_exc()
            raise _UserMistake(message_of(error), error.status) from None
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            message = f"{str(error.filename)[:200]}: {error.strerror}; use another path"
            raise _UserMistake(one_line(message), UserError.status) from error

    debug = click.option("--debug", is_flag=True, expose_value=False, callback=_note_debug,
                         help="Show where an error comes from.")  # fmt: skip
    return debug(wrapped)  # type: ignore[return-value]


def _note_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


def default_device() -> str:
    """Returns 'cuda' if PyTorch finds a GPU of that kind, otherwise 'cpu'; mps has to be asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"
