"""Images by seed: a seed gives the same image whatever other seeds are requested, and however many at a time.

Seeds have the same meaning as in NVlabs' tools, so both give the same pictures on a CPU. A GAN's latent is numpy's
RandomState(seed).randn(1, z_dim). Noise for a diffusion network comes from a torch.Generator per seed: first the
image, then the label, then what a stochastic sampler adds. All numbers are drawn on the CPU, so they are equal on
every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import Chosen, LabelLaw
from stylegan_di.torch_utils.precision import moved

_CALL_SAMPLES = 16  # most samples in one call of the network on a GPU
_CALL_PIXELS = 2**20  # most pixels of output in one call


def call_size(device: torch.device, resolution: int) -> int:
    """Returns the samples per call of the network: enough to fill a GPU; one on a CPU, where more gain little."""
    return max(1, min(_CALL_SAMPLES, _CALL_PIXELS // resolution**2)) if device.type != "cpu" else 1


def uint8_images(draw: Callable[[Sequence[int]], Tensor], seeds: Sequence[int], size: int) -> Tensor:
    """Returns n seeds' images, uint8 [n,C,H,W] on the CPU; draw(seeds) gives images [n,C,H,W], nominally in [-1,1].

    Kernels round differently for different batch sizes. Every call is therefore for `size` seeds, the last one padded
    with repetitions, so that an image does not depend on the other seeds.
    """
    filled = [*seeds, *[seeds[-1]] * (-len(seeds) % size)]
    calls = [to_uint8(draw(filled[start : start + size])).cpu() for start in range(0, len(filled), size)]
    return torch.cat(calls)[: len(seeds)]


class SeedNoise:
    """Draws random tensors for n seeds, each from its own torch.Generator."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws standard normal numbers [n, *shape]."""
        rows = [torch.randn(shape, dtype=dtype, generator=generator) for generator in self.generators]
        return moved(torch.stack(rows), self.device)

    def integers(self, high: int) -> Tensor:
        """Draws uniform integers in [0, high), [n], int64 on the CPU."""
        return torch.stack([torch.randint(high, [], generator=generator) for generator in self.generators])


def image_latents(
    model: Denoiser | Generator, noise: SeedNoise, class_index: Chosen | None
) -> tuple[Tensor, Tensor | None]:
    """Draws noise [n,C,H,W] and labels for a diffusion network; like EDM, draws a label even where one is given."""
    z = noise.normal(*model.image_shape)
    if not model.label_dim:
        return z, None
    law = model.label_law.by_seed
    return z, law.chosen(noise.integers(law.total), class_index).to(noise.device)


def numpy_latents(
    seeds: Sequence[int], z_dim: int, law: LabelLaw, class_index: Chosen | None
) -> tuple[Tensor, Tensor | None]:
    """Draws latents float64 [n,z_dim] and labels for n seeds, 0 to 2^32 - 1, on the CPU, as StyleGAN's tools do.

    class_index: None draws a label of `law` after the latent, each class that occurs as often as the others.
    """
    law = law.by_seed
    streams = [np.random.RandomState(seed) for seed in seeds]
    z = torch.from_numpy(np.concatenate([stream.randn(1, z_dim) for stream in streams]))
    if not law.label_dim:
        return z, None
    return z, law.chosen(torch.tensor([int(stream.randint(law.total)) for stream in streams]), class_index)
