"""The rows of tools/dev/benchmark.py: networks, steps, operators and metrics, each computed in two ways."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegan_di.config import TrainConfig
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.journal.journal import Journal
from stylegan_di.loss_di import IKL
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception import Inception
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.networks.edm_layers import prepare_convolutions
from stylegan_di.networks.stylegan2 import Generator as StyleGAN2
from stylegan_di.presets import ARCHITECTURES
from stylegan_di.spaces.pixels import Pixels
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.ops.modconv_epilogue import modconv_epilogue
from stylegan_di.torch_utils.ops.upfirdn2d import setup_filter
from stylegan_di.training.batch import Batch
from stylegan_di.training.instruction import Instruction
from stylegan_di.training.methods.diff_instruct import DiffInstruct
from stylegan_di.training.schedule import update_ema
from tools.dev.plain import fir_chain, plain_networks

# Tolerances of gradients in float32. A StyleGAN2's differ from float64's by up to 1e-3, on both sides, in any layout,
# probably because rounding moves activations across the kink of a leaky ReLU; tests compare small ones in float64.
STYLEGAN2_TOLERANCE, UNET_TOLERANCE = 5e-3, 1e-4

Side = Callable[[], Sequence[Tensor]]  # does the work once; returns numbers that both sides must share


@dataclass(frozen=True)
class Row:
    """Two ways to compute the same numbers."""

    name: str
    target: float | None
    images: int  # per call
    make: Callable[[], tuple[Side, Side]]  # ours, plain
    tolerance: float = 2e-5  # largest difference, relative to the largest magnitude


# Networks. The small ones have the shapes of the shipped ones, the others those of the published ones.


def stylegan2(size: str, device: torch.device) -> StyleGAN2:
    torch.manual_seed(0)
    if size == "small":
        widths: dict[str, Any] = dict(channel_base=1024, channel_max=64)
        network = StyleGAN2(64, 10, 64, 32, 1, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=widths)
    else:
        network = StyleGAN2(512, 0, 512, 32, 3, mapping_kwargs=dict(num_layers=2))
    return network.to(device).eval().requires_grad_(False)


def unet(size: str, device: torch.device) -> EDMPrecond:
    torch.manual_seed(1)
    song = ARCHITECTURES["ddpmpp"] | dict(img_resolution=32)
    if size == "small":
        song |= dict(img_channels=1, label_dim=10, model_channels=32, channel_mult=[1, 2, 2], num_blocks=2)
    else:
        song |= dict(img_channels=3, label_dim=0, model_channels=128, channel_mult=[2, 2, 2], num_blocks=4)
    network = EDMPrecond(**song, attn_resolutions=[16], dropout=0)
    for parameter in network.parameters():
        if parameter.detach().abs().max() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.02)  # a new network's last layers are zero and hide all others
    return network.to(device).eval().requires_grad_(False)


def inputs_of(
    network: StyleGAN2 | EDMPrecond, batch: int, device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    classes = network.c_dim if isinstance(network, StyleGAN2) else network.label_dim
    labels = torch.nn.functional.one_hot(torch.arange(batch) % classes, classes).float().to(device) if classes else None
    if isinstance(network, StyleGAN2):
        return (torch.randn([batch, network.z_dim], generator=generator).to(device), labels), {"noise_mode": "const"}
    x = torch.randn([batch, network.img_channels, 32, 32], generator=generator).to(device)
    return (x, torch.linspace(0.1, 5, batch, device=device), labels), {}


def nchw(network: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy whose weights have the memory layout of the original code."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def network_sides(
    network: StyleGAN2 | EDMPrecond, batch: int, device: torch.device, backward: bool
) -> tuple[Side, Side]:
    """A forward pass in evaluation mode, or forward and backward in train mode."""
    args, kwargs = inputs_of(network, batch, device)

    def run(module: torch.nn.Module) -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [module(*args, **kwargs)]
        module.requires_grad_(True).zero_grad()
        module(*args, **kwargs).square().mean().backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    other = nchw(network)

    def plain() -> list[Tensor]:
        with plain_networks(grouped=not backward):
            return run(other)

    return lambda: run(network), plain


def frozen_sides(network: EDMPrecond, batch: int, device: torch.device) -> tuple[Side, Side]:
    """A forward pass of a network whose filters are prepared, as a teacher's with --winograd."""
    prepare_convolutions(network)
    return network_sides(network, batch, device, False)


def step_of(student: Generator, teacher: Denoiser, fake_score: Denoiser, device: torch.device) -> DiffInstruct:
    """Returns Diff-Instruct's method for networks that are made here, at a rate that hardly moves them."""
    config = TrainConfig("di", teacher="made here", lr=1e-7)
    law = LogNormalLaw()
    space = Pixels(teacher.img_resolution, teacher.img_channels)
    return DiffInstruct(config, device, None, student, [Instruction(teacher, space, fake_score, IKL(), law, law)])


class Step:
    """A Diff-Instruct step with Adam and EMA; the plain one computes the student's images twice."""

    def __init__(self, kind: str, batch: int, device: torch.device, plain: bool, size: str = "small") -> None:
        arrange: Callable[[Any], Any] = nchw if plain else copy.deepcopy
        network = unet(size, device)
        teacher = EDMTeacher(arrange(network))
        student: StyleGAN2Student | OneStepStudent = OneStepStudent(arrange(network), 2.5)
        if kind == "StyleGAN2":
            student = StyleGAN2Student(arrange(stylegan2(size, device)))
        fake_score = EDMTeacher(arrange(network))
        for parameter in fake_score.parameters():
            parameter.data.mul_(1.01)  # otherwise the gradient is zero
        self.method = step_of(student, teacher, fake_score, device)
        self.batch = Batch.of_step(seed=0, nimg=0, size=batch, batch_gpu=batch, rank=0, world_size=1, device=device)
        self.plain = plain

    def __call__(self) -> list[Tensor]:
        """Returns the gradients of both updates, which Adam with beta1 = 0 holds as its mean."""
        method, journal = self.method, Journal()
        (instruction,) = method.instructions
        with plain_networks(grouped=False) if self.plain else contextlib.nullcontext():
            samples = None if self.plain else method.samples(self.batch)
            method.fake_score_update(instruction, self.batch, journal, samples=samples)
            method.student_update(self.batch, journal, samples)
            if self.plain:
                with torch.no_grad():
                    for average, parameter in zip(method.ema.parameters(), method.model.parameters(), strict=True):
                        average.copy_(parameter.lerp(average, 0.99))
            else:
                update_ema(method.ema, method.model, 0.99)
        optimizers = method.state.optimizers.values()
        return [entry["exp_avg"] for optimizer in optimizers for entry in optimizer.state.values()]


def fir_sides(batch: int, device: torch.device, backward: bool) -> tuple[Side, Side]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_(backward)

    x, scale, noise, b = leaf(batch, 64, 33, 33), leaf(batch, 64), leaf(batch, 1, 32, 32), leaf(64)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(backward)
    f, pads = setup_filter([1, 3, 3, 1]).to(device), [1, 1, 1, 1]

    def ours() -> list[Tensor]:
        return [modconv_epilogue(last, f, pads, 4, scale=scale, noise=noise, b=b, act="lrelu")]

    def plain() -> list[Tensor]:
        return [fir_chain(x, f, pads, scale, noise, b)]

    def gradients(function: Side, image: Tensor) -> Sequence[Tensor]:
        (y,) = function()
        return torch.autograd.grad(y, [image, scale, noise, b], y.detach())

    return (lambda: gradients(ours, last), lambda: gradients(plain, x)) if backward else (ours, plain)


def inception_sides(batch: int, device: torch.device) -> tuple[Side, Side]:
    """Compares the features of the optimized network with those of the network in its file."""
    torch.manual_seed(0)
    network = Inception().to(device).eval().requires_grad_(False)
    fast = copy.deepcopy(network).optimized()
    images = torch.randint(0, 256, [batch, 3, 32, 32], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    return lambda: [fast(images)], lambda: [network(images)]


def frechet_sides(dim: int = 2048) -> tuple[Side, Side]:
    """Compares with scipy's matrix square root of the product of two covariances."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    features = [torch.randn([2 * dim, dim], generator=generator).double().numpy() for _ in range(2)]
    (mu1, s1), (mu2, s2) = ((f.mean(0), (f.T @ f) / len(f)) for f in features)

    def plain() -> list[Tensor]:
        value = ((mu1 - mu2) ** 2).sum() + s1.trace() + s2.trace() - 2 * sqrtm(s1 @ s2).real.trace()
        return [torch.tensor(value)]

    return lambda: [torch.tensor(frechet_distance(mu1, s1, mu2, s2))], plain


def rows(device: torch.device) -> list[Row]:
    large = device.type == "cuda"
    small, cifar, big = (512, 128, 128) if large else (64, 8, 2)

    def network(name: str, target: float, batch: int, make: Callable[[], Any], backward: bool) -> Row:
        sides = lambda: network_sides(make(), batch, device, backward)  # noqa: E731
        gradients = STYLEGAN2_TOLERANCE if "StyleGAN2" in name else UNET_TOLERANCE
        return Row(name, target, batch, sides, gradients if backward else 2e-5)

    def step(kind: str, target: float | None, size: str = "small") -> Row:
        batch = (512 if size == "small" else 128) if large else 32
        sides = lambda: (Step(kind, batch, device, False, size), Step(kind, batch, device, True, size))  # noqa: E731
        return Row(f"Diff-Instruct step, {size}, {kind}", target, batch, sides, 1e-3)

    table = [
        network("StyleGAN2 cifar forward", 2.3, cifar, lambda: stylegan2("cifar", device), False),
        network("StyleGAN2 cifar fwd+bwd", 1.8, cifar, lambda: stylegan2("cifar", device), True),
        network("small StyleGAN2 forward", 3.2, small, lambda: stylegan2("small", device), False),
        network("small StyleGAN2 fwd+bwd", 2.7, small, lambda: stylegan2("small", device), True),
        network("small SongUNet forward", 1.3, small, lambda: unet("small", device), False),
        network("small SongUNet fwd+bwd", 1.3, small, lambda: unet("small", device), True),
        network("55.7M SongUNet forward", 1.15, big, lambda: unet("cifar", device), False),
        network("55.7M SongUNet fwd+bwd", 1.1, big, lambda: unet("cifar", device), True),
        step("EDM student", 1.4),
        step("StyleGAN2", 1.6),
        Row("fused FIR chain forward", 6, small, lambda: fir_sides(small, device, False)),
        Row("fused FIR chain fwd+bwd", 4, small, lambda: fir_sides(small, device, True)),
        Row("Inception features", 1.6, 2 * cifar, lambda: inception_sides(2 * cifar, device)),
    ]
    if large:  # these take minutes per step on a CPU
        return [*table, step("EDM student", None, "cifar"), step("StyleGAN2", None, "cifar")]
    return [
        *table,
        Row("Frechet distance, 2048 features", 6, 1, frechet_sides, 1e-6),
        Row("55.7M SongUNet forward, --winograd", 1.4, big, lambda: frozen_sides(unet("cifar", device), big, device)),
    ]
