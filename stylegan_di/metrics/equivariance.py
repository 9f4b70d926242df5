"""How exactly a StyleGAN3's picture moves with its `transform` (Karras et al. 2021, arXiv 2106.12423, appendix E).

    PSNR = 20 log10 2 - 10 log10 (sum of m (g(z; T) - T[g(z; I)])^2 / sum of m)

over samples, pixels and channels of images in [-1,1]. T[...] moves the picture by hand: by whole pixels, by Lanczos'
filter, or turned; m are the pixels whose filters lie inside the picture. A turned picture is compared in the
frequencies that both its grid and the turned one can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.metrics.features import evaluation_mode
from stylegan_di.networks import stylegan3
from stylegan_di.random import SampleRandom
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.ops.upfirdn2d import upfirdn2d
from stylegan_di.torch_utils.precision import as_float64, widest

Motion = Literal["int", "frac", "rotation"]

LARGEST_SHIFT = 1 / 8  # in pictures
LOBES = 3  # of Lanczos' window on each side
OVERSAMPLING = 4  # of the picture that is turned
REACH = math.ceil(LOBES * (1 + math.sqrt(2)))  # pixels from the centre of a turned filter to its border
SMALLEST = 32  # side in pixels of images that can be turned

Draw = Callable[[Tensor], Tensor]  # transforms [n,3,3] -> images [n,C,R,R] of the same latents


def psnr(errors: Tensor) -> float:
    """The figure, in dB, of what `motion_errors` returns."""
    error, count = errors.double().sum(dim=0).tolist()
    return 20 * math.log10(2) - 10 * math.log10(max(error / count, 1e-30))


def motion_errors(
    generator: Generator,
    motion: Motion,
    *,
    num: int,
    batch: int,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Squared errors and their numbers, float64 [num,2], of as many samples, each moved in a way of its own.

    Labels are drawn by the generator's law. All processes of a run call it inside `distributed.together` and share
    the samples; the first gets the result, the others get an empty tensor.

    Args:
        report: called in every process with the number of samples that all have done.

    Raises:
        UserError: if the generator has no `transform`, is truncated, or makes images that are too small.
    """
    network = _measurable(generator, motion)
    device = network.mapping.w_avg.device
    found: list[Tensor] = []

    def errors(indices: range) -> list[Tensor]:
        rng = SampleRandom(seed, "motion", 0, indices, device)
        labels = generator.sample_labels(rng=rng)
        ws = network.mapping(rng.normal(network.z_dim), labels)

        def draw(transforms: Tensor) -> Tensor:
            moved = {"input.transform": transforms.to(network.mapping.w_avg)}
            return functional_call(network.synthesis, moved, (ws,), {"force_fp32": True})

        return [errors_of(draw, motion, rng.uniform(2).cpu().double(), network.img_resolution).cpu()]

    with torch.no_grad(), evaluation_mode(generator):
        distributed.share_out(num, batch, errors, found.extend, report)
    return torch.cat(found) if found else torch.empty([0, 2], dtype=torch.float64)


def errors_of(draw: Draw, motion: Motion, draws: Tensor, resolution: int) -> Tensor:
    """Squared errors and their numbers, float64 [n,2], for draws [n,2], uniform in [0,1), of the motions."""
    shifts = (draws * 2 - 1) * LARGEST_SHIFT * resolution  # in pixels, to the right and down
    angles = (draws[:, 0] * 2 - 1) * math.pi
    shifts = shifts.round() if motion == "int" else shifts
    identity = torch.eye(3, dtype=torch.float64).repeat(len(draws), 1, 1)
    transforms = identity.clone()  # of positions in the result to positions in the picture
    if motion == "rotation":
        transforms[:, 0, 0] = transforms[:, 1, 1] = angles.cos()
        transforms[:, 1, 0], transforms[:, 0, 1] = angles.sin(), -angles.sin()
    else:
        transforms[:, :2, 2] = -shifts / resolution
    rows = []
    for image, moved, shift, angle in zip(draw(identity), draw(transforms), shifts, angles, strict=True):
        if motion == "rotation":
            expected, mask = turned(image, float(angle))
            moved = upfirdn2d(moved[None], turned_filter(-float(angle), 1).to(moved), padding=REACH)[0]
        else:
            expected, mask = shifted(image, *shift.tolist())
        mask = as_float64(mask)
        error = (as_float64(moved - expected).square() * mask).sum()
        rows.append(torch.stack([error, mask.sum() * len(image)]))
    return torch.stack(rows)


def shifted(image: Tensor, right: float, down: float) -> tuple[Tensor, Tensor]:
    """Moves an image [C,R,R] by pixels; returns it and the mask [R,R] of what is known of it."""
    mask = torch.ones(image.shape[1:], dtype=widest(image.device), device=image.device)
    for axis, shift in ((2, right), (1, down)):
        whole = math.floor(shift)
        if shift != whole:
            position = torch.arange(-LOBES, LOBES, dtype=torch.float64) + (shift - whole)
            taps = torch.sinc(position) * torch.sinc(position / LOBES)
            taps = (taps / taps.sum()).to(image)
            f = taps[None, :] if axis == 2 else taps[:, None]
            pads = [LOBES, LOBES - 1, 0, 0] if axis == 2 else [0, 0, LOBES, LOBES - 1]
            image = upfirdn2d(image[None], f, padding=pads, flip_filter=True)[0]
            inside = upfirdn2d(mask[None, None], torch.ones_like(f), padding=pads)[0, 0]
            mask = (inside.round() == 2 * LOBES).to(mask.dtype)
        image, mask = _roll(image, whole, axis), _roll(mask, whole, axis - 1)
    return image, mask


def _roll(values: Tensor, shift: int, axis: int) -> Tensor:
    """Moves values by whole pixels towards higher indices; zeros come in."""
    size = values.shape[axis]
    kept = values.narrow(axis, max(-shift, 0), size - abs(shift))
    zeros = torch.zeros_like(values.narrow(axis, 0, abs(shift)))
    return torch.cat([zeros, kept] if shift > 0 else [kept, zeros], dim=axis)


def turned_filter(angle: float, oversampling: int) -> Tensor:
    """The low-pass filter of frequencies that the pixels' grid and one turned by an angle can both hold.

    It is the convolution of both grids' sinc functions, times that of their Lanczos windows; float64 [taps,taps] of sum
    1, with `oversampling` taps a pixel.
    """
    reach = REACH * OVERSAMPLING
    size = 4 * reach  # of the circle on which the convolutions are computed, so that nothing wraps around
    frequency = torch.fft.fftfreq(size, 1 / OVERSAMPLING, dtype=torch.float64)
    passed = _square(frequency, 0, 0.5) * _square(frequency, angle, 0.5)
    sinc = torch.fft.ifft2(passed).real
    position = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) / OVERSAMPLING
    windows = [torch.fft.fft2(_window(position, turn)) for turn in (0.0, angle)]
    window = torch.fft.ifft2(windows[0] * windows[1]).real
    taps = torch.fft.fftshift(sinc * window)
    middle, step = size // 2, OVERSAMPLING // oversampling
    taps = taps[middle - reach : middle + reach + 1 : step, middle - reach : middle + reach + 1 : step]
    return taps / taps.sum()


def _turned(axis: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates (x, y), both [n,n], of a grid's points in a grid turned by an angle."""
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _square(axis: Tensor, angle: float, half: float) -> Tensor:
    x, y = _turned(axis, angle)
    return ((x.abs() <= half) & (y.abs() <= half)).double()


def _window(axis: Tensor, angle: float) -> Tensor:
    """Lanczos' window in two dimensions."""
    x, y = _turned(axis, angle)
    return torch.sinc(x / LOBES) * torch.sinc(y / LOBES) * _square(axis, angle, LOBES)


def turned(image: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Turns an image [C,R,R]: pixel p shows what was at R(angle) p; returns it and its mask [R,R]."""
    size = image.shape[-1]
    pads = [REACH * OVERSAMPLING, REACH * OVERSAMPLING - OVERSAMPLING + 1] * 2
    fine = upfirdn2d(image[None], turned_filter(angle, OVERSAMPLING).to(image), up=OVERSAMPLING, padding=pads,
                     gain=OVERSAMPLING**2)  # fmt: skip
    axis = torch.arange(size, dtype=widest(image.device), device=image.device) + 0.5 - size / 2  # from the middle
    x, y = _turned(axis, -angle)
    # Sample k of the fine image is at pixel k / OVERSAMPLING.
    length = fine.shape[-1]
    at = [(coordinate + size / 2 - 0.5) * OVERSAMPLING for coordinate in (x, y)]
    grid = torch.stack([(2 * place + 1) / length - 1 for place in at], dim=2).to(image)
    result = F.grid_sample(fine, grid[None], mode="bilinear", align_corners=False)[0]
    inside = size / 2 - REACH - 0.5
    own_y, own_x = torch.meshgrid(axis, axis, indexing="ij")
    mask = torch.stack([x, y, own_x, own_y]).abs().amax(dim=0) <= inside
    return result, mask.to(axis.dtype)


def _measurable(generator: Generator, motion: Motion) -> stylegan3.Generator:
    """The network of a generator whose picture can be moved; UserError if it has none."""
    network = getattr(generator, "network", None)
    if not isinstance(network, stylegan3.Generator):
        raise UserError("equivariance (eqt..., eqr...) is for a StyleGAN3, whose input moves; choose other --metrics")
    if getattr(generator, "trunc", 1) != 1:
        raise UserError("equivariance (eqt..., eqr...) is defined without truncation; leave --trunc out")
    if motion == "rotation" and network.img_resolution < SMALLEST:
        raise UserError(f"eqr50k needs images of {SMALLEST} pixels or more; choose other --metrics")
    return network
