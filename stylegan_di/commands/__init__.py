"""The command `stylegan-di`: train, generate and metrics are the scripts of these names, which are linked here."""

from __future__ import annotations

import importlib

import click

#: Name of a subcommand -> its module and what --help says of it.
COMMANDS = {
    "train": ("train", "Refine a GAN, distil a teacher, or train either from images."),
    "generate": ("generate", "Make images of a network."),
    "metrics": ("calc_metrics", "Measure a network or a folder of images."),
    "push": ("push", "Send a network with its model card to the Hugging Face hub."),
    "view": ("view", "Look at a GAN in the browser, or at two side by side."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{COMMANDS[name][0]}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, help="Make the GAN you already have better with the diffusion model you already have.")
def main() -> None:
    """The entry point of the command and of `python -m stylegan_di`."""
