"""Images by seed: a seed gives the same image whatever other seeds are asked for, and however many at a time.

Seeds mean what they mean in NVlabs' tools, so theirs and these give the same pictures on a CPU. A GAN's latent is
numpy's RandomState(seed).randn(1, z_dim). Noise for a diffusion network comes from a torch.Generator per seed: first
the image, then the label, then what a stochastic sampler adds. All numbers are drawn on the CPU, hence equal on every
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stylegan_di.images import to_uint8
from stylegan_di.interfaces import Denoiser
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.students import OneStepStudent, StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher

Draw = Callable[[Sequence[int]], Tensor]  # seeds -> images [n,C,H,W], nominally in [-1,1]

_CALL_SAMPLES = 16  # of a call of the network on a GPU,
_CALL_PIXELS = 2**20  # or fewer, for these many pixels of output


def call_size(device: torch.device, resolution: int) -> int:
    """Samples in a call of the network: enough to fill a GPU; one on a CPU, which more would hardly make faster."""
    return max(1, min(_CALL_SAMPLES, _CALL_PIXELS // resolution**2)) if device.type == "cuda" else 1


def uint8_images(draw: Draw, seeds: Sequence[int], size: int) -> Tensor:
    """The images of n seeds, uint8 [n,C,H,W] on the CPU.

    Kernels round differently for different batch sizes. Hence every call is for `size` seeds, the last one filled up
    with repetitions: an image then does not depend on its company.
    """
    filled = [*seeds, *[seeds[-1]] * (-len(seeds) % size)]
    calls = [to_uint8(draw(filled[start : start + size])).cpu() for start in range(0, len(filled), size)]
    return torch.cat(calls)[: len(seeds)]


def gan_images(
    student: StyleGAN2Student,
    seeds: Sequence[int],
    *,
    class_index: int | None = None,
    truncation_psi: float = 1.0,
    noise_mode: str = "const",
) -> Tensor:
    """Images [n,C,H,W] of a GAN. For the arguments see `gan_ws` and `gan_synthesis`."""
    ws = gan_ws(student, seeds, class_index=class_index, truncation_psi=truncation_psi)
    return gan_synthesis(student, ws, seeds, noise_mode)


@torch.no_grad()
def gan_ws(
    student: StyleGAN2Student, seeds: Sequence[int], *, class_index: int | None = None, truncation_psi: float = 1.0
) -> Tensor:
    """The mapped latents ws [n,num_ws,w_dim] of seeds.

    Args:
        student: the GAN.
        seeds: n of them, 0 to 2^32 - 1.
        class_index: 0 to label_dim - 1; None draws a label after the latent where the network is conditional.
        truncation_psi: 1 for none, 0 for the mean image.
    """
    streams = [np.random.RandomState(seed) for seed in seeds]
    device = _device(student)
    z = torch.from_numpy(np.concatenate([stream.randn(1, student.network.z_dim) for stream in streams]))
    labels = None
    if student.label_dim:
        drawn = torch.tensor([int(stream.randint(student.label_dim)) for stream in streams])
        labels = _one_hot(drawn, class_index, student.label_dim, device)
    return student.network.mapping(z.to(device), labels, truncation_psi=truncation_psi)


@torch.no_grad()
def gan_synthesis(student: StyleGAN2Student, ws: Tensor, seeds: Sequence[int], noise_mode: str = "const") -> Tensor:
    """Images [n,C,H,W] of ws [n,num_ws,w_dim].

    noise_mode: 'const', 'none', or 'random': per-pixel noise keyed by the n seeds.
    """
    noise = [SampleRandom(seed, "noise", 0, [0], ws.device) for seed in seeds]
    return student.network.synthesis(
        ws, noise_mode=noise_mode, noise_source=lambda *shape: torch.cat([random.normal(*shape) for random in noise])
    )


def uint8_of_ws(student: StyleGAN2Student, ws: Tensor, seeds: Sequence[int], noise_mode: str = "const") -> Tensor:
    """What `gan_synthesis` gives, uint8 [n,C,H,W] on the CPU, in calls of `call_size`."""
    size = call_size(ws.device, student.img_resolution)

    def draw(chosen: Sequence[int]) -> Tensor:
        return gan_synthesis(student, ws[list(chosen)], [seeds[index] for index in chosen], noise_mode)

    return uint8_images(draw, range(len(ws)), size)


@torch.no_grad()
def one_step_images(student: OneStepStudent, seeds: Sequence[int], *, class_index: int | None = None) -> Tensor:
    """Images [n,C,H,W] of a one-step student. For the arguments see `gan_ws`."""
    noise = _Noise(seeds, _device(student))
    z, labels = _edm_inputs(student, noise, class_index)
    return student(z, labels)


def teacher_images(
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    class_index: int | None = None,
    sampler: Callable[..., Tensor] = heun_sampler,
) -> Tensor:
    """Images [n,C,H,W] of a diffusion model; `sampler` is `heun_sampler`, its options bound with functools.partial."""
    noise = _Noise(seeds, _device(denoiser))
    z, labels = _edm_inputs(denoiser, noise, class_index)
    if isinstance(denoiser, EDMTeacher):
        sampler = partial(sampler, round_sigma=denoiser.round_sigma)
    return sampler(denoiser, z, labels, noise_source=partial(noise.normal, dtype=torch.float64))


class _Noise:
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


def _edm_inputs(
    model: Denoiser | OneStepStudent, noise: _Noise, class_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """Latents [n,C,H,W] and labels; the label is drawn even where one is given, as EDM does."""
    z = noise.normal(model.img_channels, model.img_resolution, model.img_resolution)
    if not model.label_dim:
        return z, None
    return z, _one_hot(noise.integers(model.label_dim), class_index, model.label_dim, noise.device)


def _one_hot(drawn: Tensor, class_index: int | None, label_dim: int, device: torch.device) -> Tensor:
    """Labels float32 [n,label_dim]: of one class, or as drawn (int64 [n])."""
    classes = drawn if class_index is None else torch.full_like(drawn, class_index)
    return torch.nn.functional.one_hot(classes, label_dim).float().to(device)


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
