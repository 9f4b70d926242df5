"""Power spectra of images: which frequencies a generator makes too weak (blur) or too strong (grids, noise).

An image is gray (the mean of its channels) in [-1,1]. Its mean is subtracted, and it is multiplied by Hann's window,
because the jumps where opposite borders of a photo meet would hide its high frequencies. The power of a frequency is

    |sum over pixels of window * image * exp(-i ...)|^2 / sum over pixels of window^2

so that white noise has its variance at all frequencies. Frequencies are lengths of wave vectors in cycles per image;
Nyquist's is half the number of pixels per side, and corners of the spectrum lie beyond, up to sqrt(2) of it. Generators
leave traces there that people do not see (Dzanic et al. 2020, arXiv 1911.06465; Schwarz et al. 2021, arXiv 2111.02447).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import from_uint8
from stylegan_di.interfaces import FeatureExtractor

BANDS = (1 / 8, 1 / 4, 1 / 2, 2**0.5)  # upper ends of the octaves, in Nyquist's; the last takes the corners as well
SMALLEST = 16  # pixels per side below which the first octave has no frequency
EPSILON = 1e-9  # added to powers; rounding to uint8 alone has 5e-6


class Spectrum(FeatureExtractor):
    """Turns images into their mean power in each octave, from coarse to fine; the image's mean is in none."""

    name = "spectrum"
    dim = len(BANDS)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255, square -> powers float32 [B,4].

        Raises:
            UserError: if they have fewer than 16 pixels per side, or are not square.
        """
        size = images.shape[-1]
        if size < SMALLEST:
            raise UserError(f"spectrum: images of {size}x{size} pixels are too small for it; {SMALLEST} is the least")
        return _ring_means(power(images), octaves(size), len(BANDS))


def radial_power(images: Tensor) -> Tensor:
    """images uint8 [B,3,H,W] in 0..255, square -> mean power at 0, 1, ... H // 2 cycles per image, [B,H//2+1].

    A wave vector counts at the nearest of these lengths; those further out than the last by more than 1/2 at none.
    """
    size = images.shape[-1]
    return _ring_means(power(images), (frequencies(size) + 0.5).floor().long(), size // 2 + 1)


def power(images: Tensor) -> Tensor:
    """images uint8 [B,3,H,W] in 0..255, square -> power of each frequency, float32 [B,H,W], in the order of `fft2`."""
    if images.shape[-1] != images.shape[-2]:
        width, height = images.shape[-1], images.shape[-2]
        raise UserError(f"spectrum: images of {width}x{height} pixels are not square; leave it out")
    x = from_uint8(images).mean(dim=1)
    window = torch.hann_window(x.shape[-1], periodic=True, device=x.device)
    window = window[:, None] * window
    x = (x - x.mean(dim=[1, 2], keepdim=True)) * window
    return torch.fft.fft2(x).abs().square() / window.square().sum()


def frequencies(size: int) -> Tensor:
    """Lengths of the wave vectors in cycles per image, float64 [size,size], in the order of `fft2`."""
    cycles = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    return torch.hypot(cycles[:, None], cycles)


def octaves(size: int) -> Tensor:
    """The octave of each frequency, 0 to 3 from coarse to fine, int64 [size,size], as `frequencies`; 4 for the mean."""
    ends = torch.tensor(BANDS, dtype=torch.float64) * (size / 2) + 1e-6  # a frequency at an end is inside
    rings = torch.bucketize(frequencies(size), ends)
    rings[0, 0] = len(BANDS)
    return rings


def band_ratios(reals: Sequence[float] | np.ndarray, fakes: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """The largest |log2 ratio|, from 0 on, then the ratio of the fakes' to the reals' mean power in each octave."""
    ratios = (np.asarray(fakes, dtype=np.float64) + EPSILON) / (np.asarray(reals, dtype=np.float64) + EPSILON)
    return (float(np.abs(np.log2(ratios)).max()), *map(float, ratios))


def _ring_means(values: Tensor, rings: Tensor, count: int) -> Tensor:
    """Means of values [B,H,W] over each ring 0, ... count - 1; rings int64 [H,W] -> [B,count]."""
    members = (rings.flatten()[:, None] == torch.arange(count)).to(values)
    return values.flatten(1) @ (members / members.sum(dim=0))
