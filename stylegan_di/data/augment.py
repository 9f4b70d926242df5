"""Non-leaking augmentation of a discriminator's images (Karras et al. 2020, arXiv 2006.06676, appendix B).

Every transform is applied to a sample with probability (its multiplier) * p. The geometric transforms are combined in
one matrix G_inv [N,3,3] with pixel_in = G_inv pixel_out and the origin at the image centre, and executed by one
resampling at twice the resolution with the sym6 wavelet's low-pass filter on both sides; colour transforms in one
matrix C [N,4,4] on (r, g, b, 1). A value that is drawn but not applied becomes 0, the identity of every transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di.data.augment_draws import Draws, RandomSource
from stylegan_di.data.augment_ops import (
    SYM6,
    brighten,
    filter_bands,
    flip_luma,
    frequency_bands,
    recolor,
    resample,
    rotate2d,
    rotate_about_luma,
    saturate,
    scale2d,
    stretch_contrast,
    translate2d,
)
from stylegan_di.torch_utils.ops import upfirdn2d
from stylegan_di.torch_utils.persistence import PersistentModule

BLIT = {"xflip": 1.0, "rotate90": 1.0, "xint": 1.0}
GEOM = {"scale": 1.0, "rotate": 1.0, "aniso": 1.0, "xfrac": 1.0}
COLOR = {"brightness": 1.0, "contrast": 1.0, "lumaflip": 1.0, "hue": 1.0, "saturation": 1.0}
FILTER, NOISE, CUTOUT = {"imgfilter": 1.0}, {"noise": 1.0}, {"cutout": 1.0}

AUGMENT_PIPES: dict[str, dict[str, float]] = {
    "blit": BLIT,
    "geom": GEOM,
    "color": COLOR,
    "filter": FILTER,
    "noise": NOISE,
    "cutout": CUTOUT,
    "bg": BLIT | GEOM,
    "bgc": BLIT | GEOM | COLOR,
    "bgcf": BLIT | GEOM | COLOR | FILTER,
    "bgcfn": BLIT | GEOM | COLOR | FILTER | NOISE,
    "bgcfnc": BLIT | GEOM | COLOR | FILTER | NOISE | CUTOUT,
    "r3gan": BLIT | GEOM | dict.fromkeys(COLOR, 0.5) | CUTOUT,
}

BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected share of power of each frequency band in natural images


class AugmentPipe(PersistentModule):
    """NVlabs' augmentation pipe; buffers and arguments are named as in their pickles.

    Args:
        xflip, ..., cutout: probability multipliers; 0 leaves a transform out.
        xint_max, xfrac_std: maximum and standard deviation of translations, relative to the image size.
        scale_std, aniso_std, contrast_std, saturation_std, imgfilter_std: standard deviation of log2 of the factor.
        rotate_max, hue_max: largest angle, in units of pi.
        brightness_std, noise_std: standard deviation, in units of the image's range [-1,1].
        imgfilter_bands: probability multipliers of the four frequency bands.
        cutout_size: side of the removed square, relative to the image size.
    """

    p: Tensor  # [] overall probability, which the training sets
    Hz_geom: Tensor  # [12] low-pass filter of the resampling
    Hz_fbank: Tensor  # [4,43] filters of the four frequency bands

    def __init__(
        self,
        xflip: float = 0,
        rotate90: float = 0,
        xint: float = 0,
        xint_max: float = 0.125,
        scale: float = 0,
        rotate: float = 0,
        aniso: float = 0,
        xfrac: float = 0,
        scale_std: float = 0.2,
        rotate_max: float = 1,
        aniso_std: float = 0.2,
        xfrac_std: float = 0.125,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        hue_max: float = 1,
        saturation_std: float = 1,
        imgfilter: float = 0,
        imgfilter_bands: Sequence[float] = (1, 1, 1, 1),
        imgfilter_std: float = 1,
        noise: float = 0,
        cutout: float = 0,
        noise_std: float = 0.1,
        cutout_size: float = 0.5,
    ) -> None:
        super().__init__()
        self.register_buffer("p", torch.ones([]))

        self.xflip = float(xflip)
        self.rotate90 = float(rotate90)
        self.xint = float(xint)
        self.xint_max = float(xint_max)

        self.scale = float(scale)
        self.rotate = float(rotate)
        self.aniso = float(aniso)
        self.xfrac = float(xfrac)
        self.scale_std = float(scale_std)
        self.rotate_max = float(rotate_max)
        self.aniso_std = float(aniso_std)
        self.xfrac_std = float(xfrac_std)

        self.brightness = float(brightness)
        self.contrast = float(contrast)
        self.lumaflip = float(lumaflip)
        self.hue = float(hue)
        self.saturation = float(saturation)
        self.brightness_std = float(brightness_std)
        self.contrast_std = float(contrast_std)
        self.hue_max = float(hue_max)
        self.saturation_std = float(saturation_std)

        self.imgfilter = float(imgfilter)
        self.imgfilter_bands = list(imgfilter_bands)
        self.imgfilter_std = float(imgfilter_std)

        self.noise = float(noise)
        self.cutout = float(cutout)
        self.noise_std = float(noise_std)
        self.cutout_size = float(cutout_size)

        self.register_buffer("Hz_geom", upfirdn2d.setup_filter(SYM6))
        self.register_buffer("Hz_fbank", torch.from_numpy(frequency_bands()).to(torch.float32))

    def forward(
        self, images: Tensor, debug_percentile: float | Tensor | None = None, *, rng: RandomSource | None = None
    ) -> Tensor:
        """Augments images float [N,C,H,W], nominally in [-1,1], C = 1 or 3; twice differentiable in them.

        Args:
            debug_percentile: if given, in [0,1], every transform is applied at this percentile of its distribution.
            rng: source of all random numbers; None for PyTorch's global generator.

        Raises UserError if the frequency-band filter is on and images are at most 21 pixels wide or high.
        """
        draws = Draws(images, debug_percentile, rng)
        if any([self.xflip, self.rotate90, self.xint, self.scale, self.rotate, self.aniso, self.xfrac]):
            images = resample(images, self._geometry(draws, images.shape[3], images.shape[2]), self.Hz_geom)
        if any([self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation]):
            images = recolor(images, self._color(draws, images.shape[1]))
        if self.imgfilter > 0:
            images = filter_bands(images, self._band_gains(draws) @ self.Hz_fbank.to(draws.zeros))
        if self.noise > 0:
            images = self._add_noise(images, draws)
        if self.cutout > 0:
            images = self._cut_out(images, draws)
        return images

    def _geometry(self, draws: Draws, width: int, height: int) -> Tensor:
        """Returns G_inv [N,3,3], the product of the inverse transforms, the first one leftmost."""
        G_inv = torch.eye(3).to(draws.zeros)
        if self.xflip > 0:
            i = draws.choice(2, self.xflip * self.p)
            G_inv = G_inv @ scale2d(1 - 2 * i, 1 + 0 * i)
        if self.rotate90 > 0:
            G_inv = G_inv @ rotate2d(draws.choice(4, self.rotate90 * self.p) * (math.pi / 2))
        if self.xint > 0:
            tx, ty = (draws.symmetric(self.xint * self.p, 2) * self.xint_max).unbind(1)
            G_inv = G_inv @ translate2d(-torch.round(tx * width), -torch.round(ty * height))
        if self.scale > 0:
            s = torch.exp2(draws.normal(self.scale * self.p) * self.scale_std)
            G_inv = G_inv @ scale2d(1 / s, 1 / s)
        # There are two rotations, before and after the anisotropic scaling; rotate * p is the probability of any.
        p_rotate = 1 - torch.sqrt((1 - self.rotate * self.p).clamp(0, 1))
        if self.rotate > 0:
            G_inv = G_inv @ rotate2d(draws.symmetric(p_rotate) * (math.pi * self.rotate_max))
        if self.aniso > 0:
            s = torch.exp2(draws.normal(self.aniso * self.p) * self.aniso_std)
            G_inv = G_inv @ scale2d(1 / s, s)
        if self.rotate > 0 and draws.percentile is None:
            G_inv = G_inv @ rotate2d(draws.symmetric(p_rotate) * (math.pi * self.rotate_max))
        if self.xfrac > 0:
            tx, ty = (draws.normal(self.xfrac * self.p, 2) * self.xfrac_std).unbind(1)
            G_inv = G_inv @ translate2d(-tx * width, -ty * height)
        return G_inv

    def _color(self, draws: Draws, channels: int) -> Tensor:
        """Returns C [N,4,4], the product of the transforms, the first one rightmost."""
        C = torch.eye(4).to(draws.zeros)
        if self.brightness > 0:
            C = brighten(draws.normal(self.brightness * self.p) * self.brightness_std) @ C
        if self.contrast > 0:
            C = stretch_contrast(torch.exp2(draws.normal(self.contrast * self.p) * self.contrast_std)) @ C
        if self.lumaflip > 0:
            C = flip_luma(draws.choice(2, self.lumaflip * self.p)) @ C
        if self.hue > 0 and channels > 1:
            C = rotate_about_luma(draws.symmetric(self.hue * self.p) * (math.pi * self.hue_max)) @ C
        if self.saturation > 0 and channels > 1:
            C = saturate(torch.exp2(draws.normal(self.saturation * self.p) * self.saturation_std)) @ C
        return C.expand(len(draws.zeros), 4, 4)

    def _band_gains(self, draws: Draws) -> Tensor:
        """Draws gains [N,4] of the frequency bands, normalised so that the expected total power is unchanged."""
        power = torch.tensor(BAND_POWER, dtype=torch.float64).to(draws.zeros)
        gains = torch.ones_like(power)
        for band, multiplier in enumerate(self.imgfilter_bands):
            gain = torch.exp2(draws.normal(self.imgfilter * self.p * multiplier) * self.imgfilter_std)
            factors = torch.where(torch.arange(4, device=gain.device) == band, gain[:, None], 1)
            gains = gains * factors / (power * factors.square()).sum(dim=1, keepdim=True).sqrt()
        return gains

    def _add_noise(self, images: Tensor, draws: Draws) -> Tensor:
        sigma = draws.half_normal(self.noise * self.p) * self.noise_std
        return images + draws.random.normal(*images.shape[1:]).to(images) * sigma.to(images.dtype)[:, None, None, None]

    def _cut_out(self, images: Tensor, draws: Draws) -> Tensor:
        size = draws.applied(self.cutout * self.p) * self.cutout_size
        center = draws.uniform(2)
        rows, columns = ((torch.arange(n, device=images.device).to(size) + 0.5) / n for n in images.shape[2:])
        in_columns = (columns - center[:, :1]).abs() < size[:, None] / 2
        in_rows = (rows - center[:, 1:]).abs() < size[:, None] / 2
        return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def augment_pipe(name: str) -> AugmentPipe:
    """The augmentations of a name in AUGMENT_PIPES."""
    multipliers: dict[str, Any] = AUGMENT_PIPES[name]
    return AugmentPipe(**multipliers)
