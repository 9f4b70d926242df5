"""Looks where a refined GAN loses fine detail: in its divergence, its fake score, its average, or in itself.

    python tools/dev/fine_detail.py runs/00000-fashion-gan-di-ikl-batch32

Prints, for each octave of frequencies, the power of the samples over that of real images, and at several noise levels
<x, D> / <D, D> of the fake score on the student's samples and of the teacher on real ones (1: calibrated), and
<x, D_q - D_p> / <x, x> on the student's samples (below 0: the divergence asks for more of this octave).
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import from_uint8
from stylegan_di.metrics.spectrum import BANDS, octaves
from stylegan_di.random import SampleRandom
from stylegan_di.runs import statefile
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
NUM = 2000  # samples
BATCH = 250


def products(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a conj(b) over the frequencies of each octave, [4], means over samples [n,1,H,W]; windowed by Hann's."""
    size = a.shape[-1]
    window = torch.hann_window(size, periodic=True)
    spectra = [torch.fft.fft2(x[:, 0] * window[:, None] * window) for x in (a, b)]
    power = (spectra[0] * spectra[1].conj()).real.mean(dim=0)
    rings = octaves(size)
    return torch.stack([power[rings == band].sum() for band in range(len(BANDS))])


def loaded(module: torch.nn.Module, state: statefile.State, role: str) -> torch.nn.Module:
    """A copy of a network with a role's weights of a training state."""
    own = copy.deepcopy(module)
    own.load_state_dict({k.removeprefix(f"{role}."): v for k, v in state.tensors.items() if k.startswith(f"{role}.")})
    return own.eval()


def text(values: Tensor) -> str:
    return " ".join(f"{float(value):7.3f}" for value in values)


@click.command(help=help_of(__doc__))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", default="datasets/fashion-16-test.zip", show_default=True, help="Real images of one channel.")
@user_errors
@torch.no_grad()
def main(run: Path, data: str) -> None:
    states = statefile.complete_states(run) if run.is_dir() else []
    if not states:
        raise UserError(f"{run}: it holds no training state; pass the folder of a run of --kind=di")
    state = statefile.load_state(states[-1])
    teacher, gan = load_denoiser(state.config["teacher"]), load_generator(state.config["gan_pkl"])
    fake_score = loaded(teacher, state, "fake_score")
    dataset = ImageDataset(data, use_labels=gan.label_dim > 0)
    pairs = [dataset[index] for index in range(min(NUM, len(dataset)))]
    real = from_uint8(torch.from_numpy(np.stack([image for image, _ in pairs])))
    labels = torch.from_numpy(np.stack([label for _, label in pairs])).float()
    z = gan.sample_latents(len(real), rng=SampleRandom(0, "fine detail", 0, range(len(real)), torch.device("cpu")))
    reference = products(real, real)
    shown = {"before": gan, "trained": loaded(gan, state, "model"), "average": loaded(gan, state, "ema")}
    samples = {name: network(z, labels) for name, network in shown.items()}
    for name, x in samples.items():
        clipped = x.clamp(-1, 1)
        click.echo(f"{name:<8} power / real {text(products(clipped, clipped) / reference)}")
    x, noise = samples["trained"].clamp(-1, 1), torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    for level in SIGMAS:
        sigma = torch.full([len(x)], level)

        def denoised(network: torch.nn.Module, clean: Tensor, sigma: Tensor = sigma, level: float = level) -> Tensor:
            parts = zip((clean + level * noise).split(BATCH), sigma.split(BATCH), labels.split(BATCH), strict=True)
            return torch.cat([network(*part) for part in parts])

        q, p, own = denoised(fake_score, x), denoised(teacher, x), denoised(teacher, real)
        click.echo(
            f"sigma {level:<5g} fake score {text(products(x, q) / products(q, q))}   teacher "
            f"{text(products(real, own) / products(own, own))}   asked {text(products(x, q - p) / products(x, x))}"
        )


if __name__ == "__main__":
    main()
