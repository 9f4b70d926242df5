"""EDM's augmentation of a denoiser's training images, with labels that tell the network which transforms were applied.

Karras et al. 2022 (arXiv 2206.00364), appendix F.2: StyleGAN2-ADA's geometric and colour transforms (`data.augment`)
are each applied to a sample with probability (its multiplier) * p. A network trained with the labels gives unaugmented
images when it is called without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stylegan_di.data.augment_draws import Draws, RandomSource
from stylegan_di.data.augment_ops import (
    SYM6,
    brighten,
    flip_luma,
    recolor,
    resample,
    rotate2d,
    rotate_about_luma,
    saturate,
    scale2d,
    stretch_contrast,
    translate2d,
)
from stylegan_di.torch_utils.persistence import Persistent

#: The transforms that EDM trains with, which have nine labels. At any p above 1e-8, half of the images are mirrored.
TRAINING = {"xflip": 1e8, "yflip": 1.0, "scale": 1.0, "rotate_frac": 1.0, "aniso": 1.0, "translate_frac": 1.0}
TRAINING_LABELS = 9


class AugmentPipe(Persistent):
    """EDM's augmentation pipe; its class and its arguments are named as in NVlabs' pickles.

    Args:
        p: overall probability.
        xflip, ..., saturation: probability multipliers; 0 leaves a transform and its labels out.
        translate_int_max, translate_frac_std: maximum and standard deviation of translations, relative to the size.
        scale_std, aniso_std, contrast_std, saturation_std: standard deviation of log2 of the factor.
        rotate_frac_max, hue_max: largest angle, in units of pi.
        aniso_rotate_prob: probability that an anisotropic scaling is along an axis other than x and y.
        brightness_std: standard deviation, in units of the image's range [-1,1].
    """

    def __init__(
        self,
        p: float = 1,
        xflip: float = 0,
        yflip: float = 0,
        rotate_int: float = 0,
        translate_int: float = 0,
        translate_int_max: float = 0.125,
        scale: float = 0,
        rotate_frac: float = 0,
        aniso: float = 0,
        translate_frac: float = 0,
        scale_std: float = 0.2,
        rotate_frac_max: float = 1,
        aniso_std: float = 0.2,
        aniso_rotate_prob: float = 0.5,
        translate_frac_std: float = 0.125,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        hue_max: float = 1,
        saturation_std: float = 1,
    ) -> None:
        self.p = float(p)

        self.xflip = float(xflip)
        self.yflip = float(yflip)
        self.rotate_int = float(rotate_int)
        self.translate_int = float(translate_int)
        self.translate_int_max = float(translate_int_max)

        self.scale = float(scale)
        self.rotate_frac = float(rotate_frac)
        self.aniso = float(aniso)
        self.translate_frac = float(translate_frac)
        self.scale_std = float(scale_std)
        self.rotate_frac_max = float(rotate_frac_max)
        self.aniso_std = float(aniso_std)
        self.aniso_rotate_prob = float(aniso_rotate_prob)
        self.translate_frac_std = float(translate_frac_std)

        self.brightness = float(brightness)
        self.contrast = float(contrast)
        self.lumaflip = float(lumaflip)
        self.hue = float(hue)
        self.saturation = float(saturation)
        self.brightness_std = float(brightness_std)
        self.contrast_std = float(contrast_std)
        self.hue_max = float(hue_max)
        self.saturation_std = float(saturation_std)

    def __call__(self, images: Tensor, *, rng: RandomSource | None = None) -> tuple[Tensor, Tensor]:
        """Augments images float [N,C,H,W], nominally in [-1,1], C = 1 or 3.

        Args:
            rng: source of all random numbers; None for PyTorch's global generator.

        Returns:
            The images, and labels [N,label_dim] that are 0 for transforms that were not applied.
        """
        draws = Draws(images, None, rng)
        labels: list[Tensor] = [images.new_zeros([len(images), 0])]
        images = self._blit(images, draws, labels)
        if any([self.scale, self.rotate_frac, self.aniso, self.translate_frac]):
            G_inv = self._geometry(draws, labels, images.shape[3], images.shape[2])
            low_pass = torch.tensor(SYM6, dtype=torch.float32, device=images.device)  # sums to sqrt(2), not 1
            images = resample(images, G_inv, low_pass) / 4  # so the two passes have a gain of 2 along each axis
        if any([self.brightness, self.contrast, self.lumaflip, self.hue, self.saturation]):
            images = recolor(images, self._color(draws, labels))
        return images, torch.cat(labels, dim=1).to(images.dtype)

    def _blit(self, images: Tensor, draws: Draws, labels: list[Tensor]) -> Tensor:
        """Applies the transforms that need no resampling: flips, quarter turns and whole-pixel translations."""
        height, width = images.shape[2:]

        def where(applied: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.where((applied == 1)[:, None, None, None], change(images), images)

        if self.xflip > 0:
            w = draws.choice(2, self.xflip * self.p)
            images = where(w, lambda x: x.flip(3))
            labels.append(w[:, None])
        if self.yflip > 0:
            w = draws.choice(2, self.yflip * self.p)
            images = where(w, lambda x: x.flip(2))
            labels.append(w[:, None])
        if self.rotate_int > 0:
            w = draws.choice(4, self.rotate_int * self.p)
            along_x, along_y = ((w == 1) | (w == 2)).to(w), ((w == 2) | (w == 3)).to(w)
            images = where(along_x, lambda x: x.flip(3))
            images = where(along_y, lambda x: x.flip(2))
            images = where(((w == 1) | (w == 3)).to(w), lambda x: x.transpose(2, 3))
            labels.append(torch.stack([along_x, along_y], dim=1))
        if self.translate_int > 0:
            size = torch.tensor([width, height]).to(draws.zeros) * self.translate_int_max
            shift = torch.round(draws.symmetric(self.translate_int * self.p, 2) * size)
            images = _shift(images, shift.long())  # positive y moves up, as in NVlabs' code
            labels.append(shift / size)
        return images

    def _geometry(self, draws: Draws, labels: list[Tensor], width: int, height: int) -> Tensor:
        """Returns G_inv [N,3,3], the product of the inverse transforms, the first one leftmost."""
        G_inv = torch.eye(3).to(draws.zeros)
        if self.scale > 0:
            w = draws.normal(self.scale * self.p)
            s = torch.exp2(w * self.scale_std)
            G_inv = G_inv @ scale2d(1 / s, 1 / s)
            labels.append(w[:, None])
        if self.rotate_frac > 0:
            w = draws.symmetric(self.rotate_frac * self.p) * (math.pi * self.rotate_frac_max)
            G_inv = G_inv @ rotate2d(w)
            labels.append(torch.stack([w.cos() - 1, w.sin()], dim=1))
        if self.aniso > 0:
            w = draws.normal(self.aniso * self.p)
            r = draws.symmetric(self.aniso_rotate_prob) * math.pi
            s = torch.exp2(w * self.aniso_std)
            G_inv = G_inv @ rotate2d(-r) @ scale2d(1 / s, s) @ rotate2d(r)
            labels.append(torch.stack([w * r.cos(), w * r.sin()], dim=1))
        if self.translate_frac > 0:
            w = draws.normal(self.translate_frac * self.p, 2)
            tx, ty = (w * self.translate_frac_std).unbind(1)
            G_inv = G_inv @ translate2d(-tx * width, -ty * height)
            labels.append(w)
        return G_inv

    def _color(self, draws: Draws, labels: list[Tensor]) -> Tensor:
        """Returns C [N,4,4], the product of the transforms, the first one rightmost."""
        C = torch.eye(4).to(draws.zeros).expand(len(draws.zeros), 4, 4)
        if self.brightness > 0:
            w = draws.normal(self.brightness * self.p)
            C = brighten(w * self.brightness_std) @ C
            labels.append(w[:, None])
        if self.contrast > 0:
            w = draws.normal(self.contrast * self.p)
            C = stretch_contrast(torch.exp2(w * self.contrast_std)) @ C
            labels.append(w[:, None])
        if self.lumaflip > 0:
            w = draws.choice(2, self.lumaflip * self.p)
            C = flip_luma(w) @ C
            labels.append(w[:, None])
        if self.hue > 0:
            w = draws.symmetric(self.hue * self.p) * (math.pi * self.hue_max)
            C = rotate_about_luma(w) @ C
            labels.append(torch.stack([w.cos() - 1, w.sin()], dim=1))
        if self.saturation > 0:
            w = draws.normal(self.saturation * self.p)
            C = saturate(torch.exp2(w * self.saturation_std)) @ C
            labels.append(w[:, None])
        return C


def _shift(images: Tensor, shift: Tensor) -> Tensor:
    """Moves images [N,C,H,W] right and up by whole pixels, int64 [N,2]; reflects at the borders."""
    _, channels, height, width = images.shape

    def source(size: int, by: Tensor) -> Tensor:
        """Returns the position from which each of `size` pixels is taken, [N,size]."""
        period = 2 * (size - 1)
        position = (torch.arange(size, device=images.device) - by[:, None]) % period
        return (size - 1) - (size - 1 - position).abs()

    columns = source(width, shift[:, 0])[:, None, None, :].expand(-1, channels, height, -1)
    rows = source(height, -shift[:, 1])[:, None, :, None].expand(-1, channels, -1, width)
    return images.gather(3, columns).gather(2, rows)
