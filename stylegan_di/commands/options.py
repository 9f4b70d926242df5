"""Options that several commands have, each declared once.

An option without a default here is None where it is not given, and `given` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from stylegan_di.dnnlib.cli import Choice, CommaList, Device, default_device
from stylegan_di.sampling.ablation import SOLVERS
from stylegan_di.sampling.diffusion_sampler import DPM_SOLVER

Function = TypeVar("Function", bound=Callable[..., Any])

device_option = click.option(
    "--device", type=Device(), callback=lambda _context, _option, value: value or default_device(),
    help="cuda, cuda:N, cpu or mps.  [default: cuda when there]",
)  # fmt: skip
noise_mode_option = click.option(
    "--noise-mode", type=Choice(["const", "random", "none"]),
    help="[GAN] StyleGAN2's noise inputs; random draws them from the seed.  [default: const]",
)  # fmt: skip


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """One decorator of several, in the order in which --help lists them."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


truncation_options = together(
    click.option("--trunc", type=float, help="[GAN] Truncation psi.  [default: 1]"),
    click.option("--trunc-mode", type=Choice(["mean", "class"]),
                 help="[GAN] Truncate towards the mean of all w, or of the image's class.  [default: mean]"),
)  # fmt: skip
sampler_options = together(
    click.option("--steps", type=click.IntRange(min=1), help="[teacher] Sampler steps.  [default: 18, dpmpp: 8]"),
    click.option("--solver", type=Choice([*SOLVERS, DPM_SOLVER]),
                 help="[teacher] Solver; dpmpp: DPM-Solver++(2M), good at 8 steps.  [default: heun]"),
)  # fmt: skip
entry_options = together(
    click.option("--which", metavar="ENTRY", help="Entry of a file with several networks.  [default: G_ema or ema]"),
    click.option("--autoencoder", metavar="DIR|hf:NAME", help="[teacher] That of a teacher of latents."),
)


def class_options(several: str = "", *, needed: bool = False) -> Callable[[Function], Function]:
    """--class and --label, texts and numbers; `several` says what several classes do, `needed` that one has to be."""
    default = "a conditional network needs it, or --label" if needed else "default: drawn from the seed"
    text = f"Class of a conditional network, its number or its name{several}.  [{default}]"
    return together(
        click.option("--class", "classes", metavar="N|NAME", help=text),
        click.option("--label", type=CommaList(float), metavar="X,Y,...",
                     help="Label of a network whose labels are vectors."),
    )  # fmt: skip


def given(**options: Any) -> dict[str, Any]:
    """The options that are given, by name."""
    return {name: value for name, value in options.items() if value is not None}
