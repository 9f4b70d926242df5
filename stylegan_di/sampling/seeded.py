"""Images by seed: a seed gives the same image whatever other seeds are asked for, and however many at a time.

Seeds mean what they mean in NVlabs' tools, so theirs and these give the same pictures on a CPU. A GAN's latent is
numpy's RandomState(seed).randn(1, z_dim). Noise for a diffusion network comes from a torch.Generator per seed: first
the image, then the label, then what a stochastic sampler adds. All numbers are drawn on the CPU, hence equal on every
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import one_hot

_CALL_SAMPLES = 16  # of a call of the network on a GPU,
_CALL_PIXELS = 2**20  # or fewer, for these many pixels of output


def call_size(device: torch.device, resolution: int) -> int:
    """Samples in a call of the network: enough to fill a GPU; one on a CPU, which more would hardly make faster."""
    return max(1, min(_CALL_SAMPLES, _CALL_PIXELS // resolution**2)) if device.type == "cuda" else 1


def uint8_images(draw: Callable[[Sequence[int]], Tensor], seeds: Sequence[int], size: int) -> Tensor:
    """The images of n seeds, uint8 [n,C,H,W] on the CPU; draw(seeds) gives images [n,C,H,W], nominally in [-1,1].

    Kernels round differently for different batch sizes. Hence every call is for `size` seeds, the last one filled up
    with repetitions: an image then does not depend on its company.
    """
    filled = [*seeds, *[seeds[-1]] * (-len(seeds) % size)]
    calls = [to_uint8(draw(filled[start : start + size])).cpu() for start in range(0, len(filled), size)]
    return torch.cat(calls)[: len(seeds)]


class SeedNoise:
    """Random tensors of n seeds, each from a torch.Generator of its own."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers [n, *shape]."""
        rows = [torch.randn(shape, dtype=dtype, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high), [n], int64 on the CPU."""
        return torch.stack([torch.randint(high, [], generator=generator) for generator in self.generators])


def image_latents(
    model: Denoiser | Generator, noise: SeedNoise, class_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """Noise [n,C,H,W] and labels for a diffusion network; the label is drawn even where one is given, as EDM does."""
    z = noise.normal(model.img_channels, model.img_resolution, model.img_resolution)
    if not model.label_dim:
        return z, None
    return z, chosen_labels(noise.integers(model.label_dim), class_index, model.label_dim).to(noise.device)


def chosen_labels(drawn: Tensor, class_index: int | None, label_dim: int) -> Tensor:
    """Labels float32 [n,label_dim] of one class; without one, of the classes drawn, int64 [n]."""
    return one_hot(drawn if class_index is None else torch.full_like(drawn, class_index), label_dim)
