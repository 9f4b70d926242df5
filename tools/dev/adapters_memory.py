"""Measures the memory of a fake score that is a whole copy of its teacher against one of low-rank adapters.

    python tools/dev/adapters_memory.py --network=ddpm256 --rank=64 --batch=2

Each row is a process of its own: teacher, fake score and Adam, one pass of the teacher and one update of the fake
score. Weights, gradients and moments are counted tensor by tensor; the peak is CUDA's, or the process's resident memory
beyond what it had before the networks.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stylegan_di.diffusion import discrete_levels
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.journal.resources import peak_memory
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.teachers.discrete import DiscreteTeacher, Texts, Times
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.optimize import adam, trainable
from tools.dev.benchmark import report_file, write_report

EDM = "EDMPrecond"  # the class whose networks are not diffusers'
#: Class and arguments of a network: a tiny one, google/ddpm-church-256's, Stable Diffusion 1's, EDM's for CIFAR-10 and
#: for ImageNet-64, which is ADM's.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("UNet2DModel", dict(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )),
    "ddpm256": ("UNet2DModel", dict(
        sample_size=256, in_channels=3, out_channels=3, block_out_channels=(128, 128, 256, 256, 512, 512),
        layers_per_block=2, attention_head_dim=None,
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    )),
    "sd1": ("UNet2DConditionModel", dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)),
    "edm-cifar10": (EDM, dict(img_resolution=32, img_channels=3, model_type="SongUNet", model_channels=128,
                              channel_mult=[2, 2, 2])),
    "edm-imagenet64": (EDM, dict(img_resolution=64, img_channels=3, label_dim=1000, model_type="DhariwalUNet",
                                 model_channels=192, channel_mult=[1, 2, 3, 4])),
}  # fmt: skip
#: Whether the fake score has adapters, and whether activations are computed again.
ROWS = {
    "copy": (False, False),
    "copy, checkpointing": (False, True),
    "adapters": (True, False),
    "adapters, checkpointing": (True, True),
}


def size_of(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of different storages."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(found.values())


def opened(network: str, checkpointing: bool) -> Denoiser:
    """A teacher with random weights."""
    torch.manual_seed(0)
    class_name, arguments = NETWORKS[network]
    if class_name == EDM:
        teacher: Denoiser = EDMTeacher(EDMPrecond(**arguments))
    else:
        teacher = _pipeline(class_name, arguments)
    if checkpointing:
        teacher.checkpoint_activations()
    return teacher


def _pipeline(class_name: str, arguments: dict[str, Any]) -> Denoiser:
    import diffusers

    made = getattr(diffusers, class_name)(**arguments)
    texts = Texts(torch.zeros(2, 77, arguments["cross_attention_dim"])) if "cross_attention_dim" in arguments else None
    levels = discrete_levels(diffusers.DDPMScheduler().alphas_cumprod)
    return DiscreteTeacher(made, Times(levels, "epsilon"), texts=texts)


def measure(network: str, rank: int | None, checkpointing: bool, batch: int, device: str) -> dict[str, int]:
    """Bytes of one way: teacher, weights of both networks, gradients and moments of the fake score, and the peak."""
    if NETWORKS[network][0] != EDM:
        import diffusers  # noqa: F401  so that its own memory is none of the networks'

    cuda = device.startswith("cuda")
    before = 0 if cuda else _resident()
    teacher = opened(network, checkpointing).eval().requires_grad_(False).to(device)
    fake_score = teacher.trainable_copy() if rank is None else teacher.adapted_copy(rank)
    fake_score.to(device).eval().requires_grad_(False)
    optimizer = adam(fake_score, 1e-5, beta1=0.0, beta2=0.99)
    x = torch.zeros([batch, teacher.img_channels, teacher.img_resolution, teacher.img_resolution], device=device)
    sigma = torch.ones(batch, device=device)
    with torch.no_grad():
        teacher(x, sigma)
    with trainable(fake_score, train_mode=False):
        fake_score(x, sigma).square().sum().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    both = (*teacher.parameters(), *fake_score.parameters())
    peak = torch.cuda.max_memory_allocated() if cuda else _resident() - before
    return {
        "teacher": size_of(teacher.parameters()),
        "weights": size_of(both),
        "gradients": size_of(parameter.grad for parameter in fake_score.parameters()),
        "moments": size_of(moments),
        "peak": peak,
    }


def _resident() -> int:
    """The most memory that this process has had resident, in bytes.

    Raises:
        UserError: the system does not say.
    """
    found = peak_memory()
    if found is None:
        raise UserError("--device=cpu: this system does not say what memory a process takes; give --device=cuda")
    return found


@click.command(help=help_of(__doc__))
@click.option("--network", type=click.Choice(list(NETWORKS)), default="ddpm256", show_default=True)
@click.option("--rank", type=click.IntRange(1, 4096), default=64, show_default=True, help="Rank of the adapters.")
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Images in the update.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@report_file
@user_errors
def main(network: str, rank: int, batch: int, device: str, target: Path | None) -> None:
    rows: dict[str, dict[str, int]] = {}
    for name, (adapted, checkpointing) in ROWS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows[name] = pool.apply(measure, (network, rank if adapted else None, checkpointing, batch, device))
        shown = "  ".join(f"{what} {size / 1e6:.1f}" for what, size in rows[name].items())
        click.echo(f"{name:<24} MB: {shown}")
    write_report(target, {"network": network, "rank": rank, "batch": batch, "device": device, "rows": rows})


if __name__ == "__main__":
    main()
