"""The command `stylegan-di`: each subcommand is the module of its name in this folder.

A new one is a module with a click command `main` and a line in COMMANDS. The scripts of a clone (train.py, generate.py,
calc_metrics.py, tools/*.py) call the same modules.
"""

from __future__ import annotations

import importlib
import os

import click

from stylegan_di.dnnlib.util import did_you_mean

#: PyTorch computes on the CPU, and says so, what it cannot on Apple's GPUs. It looks when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

#: What --help says of each subcommand; `style-mix` is the module style_mix.
COMMANDS = {
    "train": "Refine a GAN, distil a teacher, or train either from images.",
    "generate": "Make images of a network.",
    "metrics": "Measure a network or a folder of images.",
    "dataset": "Make a data set of images, or check one.",
    "reference": "Make the reference statistics of a data set, for --ref.",
    "inspect": "Say what a network file is, without running anything in it.",
    "convert": "Write a network as .pkl, .safetensors or .onnx.",
    "compare": "Draw two GANs at the same latents and measure how far apart they are.",
    "interpolate": "Make a video of a walk through a GAN's latents.",
    "style-mix": "Draw a grid with the content of its rows and the style of its columns.",
    "project": "Find the w and the noise of a GAN that come closest to an image.",
    "preflight": "Say before a refinement whether it can help, and what it costs.",
    "spectrum": "Draw the power spectra of networks and images over that of real images.",
    "push": "Send a network with its model card to the Hugging Face hub.",
    "view": "Look at a GAN in the browser, or at two side by side.",
    "doctor": "Check this machine: PyTorch, GPU, compiler, native kernels.",
}


class Commands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, help="Make the GAN you already have better with the diffusion model you already have.")
@click.version_option(package_name="stylegan-di")
def main() -> None:
    """The entry point of the command and of `python -m stylegan_di`."""
