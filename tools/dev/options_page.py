"""Writes docs/options.md, the page of train.py's options, from their declarations.

    python tools/dev/options_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.util import atomic_write, option_name
from stylegan_di.options import Option, options_of
from stylegan_di.presets import KIND_DEFAULTS
from stylegan_di.specs import FINITE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"
COLUMNS = "| option | kinds | accepts | default | what it does |\n|---|---|---|---|---|\n"
HEAD = """# Options of train.py

This page is written by `python tools/dev/options_page.py` from the declarations in `stylegan_di/config/fields.py`, as
`--help` is. `--kind` chooses the method: `di` refines a GAN or distils a teacher, `edm` trains a denoiser, `gan` trains
a StyleGAN2-ADA. A preset (`--cfg`, [presets](presets.md)) goes over the defaults here, and an option that is given goes
over both. An option that has no effect together with the others is refused.
"""


def page() -> str:
    """The page's text."""
    groups: dict[str, list[Option]] = {}
    for declared in options_of(TrainConfig):
        groups.setdefault(declared.group, []).append(declared)
    parts = [HEAD]
    for title, options in groups.items():
        rows = "\n".join(row(declared) for declared in options)
        parts.append(f"\n## {title}\n\n{COLUMNS}{rows}\n")
    return "".join(parts)


def row(declared: Option) -> str:
    """One option as a row of a table."""
    if declared.choices:
        accepts = ", ".join(f"`{choice}`" for choice in declared.choices)
    elif declared.item in (int, float) and declared.accepted is not FINITE:
        accepts = str(declared.accepted) + (", whole" if declared.item is int else "")
    else:
        accepts = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[declared.item]
    accepts += ", several" if declared.many else ""
    kinds = declared.kinds or tuple(KIND_DEFAULTS)
    found = {kind: text(KIND_DEFAULTS[kind].get(declared.name, declared.default)) for kind in kinds}
    default = next(iter(found.values()))
    if len(set(found.values())) > 1:
        default = ", ".join(f"{value or 'none'} [{kind}]" for kind, value in found.items())
    cells = [f"`{option_name(declared.name)}`", ", ".join(declared.kinds) or "all", accepts, default, declared.help]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def text(value: object) -> str:
    """A default as it would be given on the command line, '' for none."""
    if value is None or value in ("", ()):
        return ""
    return f"`{','.join(map(str, value))}`" if isinstance(value, tuple) else f"`{str(value).lower()}`"


@click.command(help=(__doc__ or "").replace("\n    ", "\n\n    "))
def main() -> None:
    atomic_write(PAGE, page().encode())
    click.echo(f"written: {PAGE}")


if __name__ == "__main__":
    main()
