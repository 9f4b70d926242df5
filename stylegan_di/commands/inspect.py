"""Says what a network file is, where it comes from and whether it can be used, without running anything in it.

    stylegan-di inspect cifar10.pkl
    stylegan-di inspect from-a-stranger.pkl --json
"""

from __future__ import annotations

import json

import click

from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.terminal import one_line
from stylegan_di.snapshots.inspection import Inspection, inspect_file, is_whole


def report(found: Inspection) -> str:
    lines = [
        f"file        {found.source}, {found.size:,} bytes",
        f"SHA-256     {found.sha256}",
        f"written by  {found.writer}",
    ]
    lines += [f"origin      {found.origin}"] if found.origin else []
    for entry in found.entries:
        lines += [f"network     {entry}", *(f"            {key} = {value}" for key, value in entry.arguments.items())]
    lines += [f"beside      {', '.join(found.others)}"] if found.others else []
    told = {key: f"{value:.0f}" if is_whole(value) else value for key, value in found.metadata.items()}
    lines += [f"provenance  {key}: {value}" for key, value in told.items()]
    lines += [f"embedded    source with SHA-256 {digest}, not run" for digest in found.embedded]
    lines += [f"warning     {text}" for text in found.warnings]
    return "\n".join(map(one_line, lines))


@click.command(help=help_of(__doc__))
@click.argument("network", metavar="IN")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@user_errors
def main(network: str, as_json: bool) -> None:
    found = inspect_file(network)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else report(found))
