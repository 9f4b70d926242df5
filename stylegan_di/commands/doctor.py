"""Checks this machine's PyTorch, GPU, compiler and native kernels; reports what is wrong in full, with the remedy.

    stylegan-di doctor

Builds the native kernels if they are not yet built, and compares each with its reference. The exit status is 1 if
anything is wrong; even then training works wherever PyTorch does.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator

import click
import torch
from torch import Tensor

from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError, cache_folder
from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.ops.bias_act import bias_act
from stylegan_di.torch_utils.ops.filtered_lrelu import filtered_lrelu
from stylegan_di.torch_utils.ops.group_norm_silu import group_norm_silu
from stylegan_di.torch_utils.ops.modconv_epilogue import modconv_epilogue
from stylegan_di.torch_utils.ops.reference import reference_kernels
from stylegan_di.torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

TOLERANCE = 1e-5  # largest difference between kernel and reference, relative to the largest magnitude, in float32
Op = Callable[[Tensor], Tensor]


def machine() -> Iterator[str]:
    yield f"python     {platform.python_version()} on {platform.platform()}"
    capability = torch.backends.cpu.get_cpu_capability()
    yield f"torch      {torch.__version__}, {torch.get_num_threads()} threads, {capability}"
    yield f"CPU cores  {os.cpu_count()}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}      {properties.name}, {properties.total_memory >> 30} GiB, CUDA {torch.version.cuda}"
    if not torch.cuda.device_count():
        yield f"GPU        none that PyTorch finds (built for CUDA: {torch.version.cuda or 'no'})"
    yield f"cache      {cache_folder().parent}"


def ops(device: str) -> dict[str, Op]:
    """Returns a function of x [2,8,9,9] for each op."""
    f = setup_filter([1, 3, 3, 1]).to(device)
    values = torch.linspace(-1, 1, 8, device=device)
    scale = torch.linspace(0.5, 2, 16, device=device).reshape(2, 8)
    noise = torch.linspace(-1, 1, 2 * 8 * 8, device=device).reshape(2, 1, 8, 8)
    return {
        "bias_act": lambda x: bias_act(x, values, act="lrelu", clamp=1),
        "upfirdn2d": lambda x: upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1]),
        "filtered_lrelu": lambda x: filtered_lrelu(x, f, f, values, up=2, down=2, padding=[4, 3, 4, 3], clamp=1),
        "modconv_epilogue": lambda x: modconv_epilogue(
            x, f, [1, 1, 1, 1], 4, scale=scale, noise=noise, b=values, act="lrelu"
        ),
        "group_norm_silu": lambda x: group_norm_silu(x, values, values, 2, 1e-5, shift=scale),
    }


def difference(op: Op, x: Tensor) -> float:
    """The largest difference of kernel and reference, in value and gradient, relative to the largest magnitude."""
    results = []
    for context in (reference_kernels(x.device.type), torch.enable_grad()):
        with context:
            leaf = x.detach().clone().requires_grad_()
            y = op(leaf)
            (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append((y.detach(), gradient))
    return max(float((a - e).abs().max() / e.abs().max()) for e, a in zip(*results, strict=True))


def kernel_report(device: str) -> Iterator[tuple[bool, str]]:
    """Builds, loads and checks the kernels of a device; yields (whether it is well, line)."""
    try:
        plan = build.recipe(device)
        library = build.build(plan, again=True)
    except UserError as error:
        yield False, f"kernels    {device}: reference, because native ones cannot be built:\n{error}"
        return
    words = build.load(device, may_build=False)
    yield words.startswith("native"), f"kernels    {device}: {words}, {library}"
    if not words.startswith("native"):
        return
    generator = torch.Generator().manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn([2, 8, 9, 9], generator=generator).to(device).contiguous(memory_format=layout)
        text = "NCHW" if layout == torch.contiguous_format else "channels_last"
        for name, op in ops(device).items():
            largest = difference(op, x)
            well = largest < TOLERANCE
            verdict = "" if well else "  WRONG"
            yield well, f"  {name:<17s} {text:<14s} differs from its reference by {largest:.1e}{verdict}"


@click.command(help=help_of(__doc__))
@user_errors
def main() -> None:
    for line in machine():
        click.echo(line)
    well = True
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        for fine, line in kernel_report(device):
            click.echo(line)
            well &= fine
    click.echo("all is well" if well else "something is wrong: see above")
    raise click.exceptions.Exit(0 if well else 1)
