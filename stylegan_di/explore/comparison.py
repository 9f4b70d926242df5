"""Measures how far two generators differ at the same latents: in pixels, in features, and under truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import to_rgb, to_uint8
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.labels import one_hot
from stylegan_di.random import SampleRandom

BATCH = 32  # images at a time


@dataclass(frozen=True)
class TruncationPoint:
    """Two generators at one truncation psi.

    `pixel_distance` is the mean absolute difference of their images, `feature_distance` is the mean Euclidean distance
    of the images' features, and `spread_old` and `spread_new` are the standard deviation of a pixel over the latents,
    averaged over pixels. Pixels are in [-1,1].
    """

    psi: float
    pixel_distance: float
    feature_distance: float
    spread_old: float
    spread_new: float


@dataclass(frozen=True)
class Comparison:
    """`old` and `new` are the images [num,C,H,W] in [-1,1] without truncation; `plain` compares these."""

    old: Tensor
    new: Tensor
    plain: TruncationPoint
    truncation: tuple[TruncationPoint, ...]


def check_comparable(old: Generator, new: Generator) -> None:
    """Raises UserError unless two generators have the same latents, labels and image size; a refiner has its GAN's."""
    shapes = (list(g.sample_latents(1, rng=SampleRandom(0, "compare", 0, [0])).shape[1:]) for g in (old, new))
    for what, first, second in (
        ("kind", old.latent_kind, new.latent_kind),
        ("resolution", old.img_resolution, new.img_resolution),
        ("channels", old.img_channels, new.img_channels),
        ("classes", old.label_dim, new.label_dim),
        ("shape of z", *shapes),
    ):
        if first != second:
            raise UserError(f"OLD and NEW do not match: {what} {first} against {second}; compare GANs of one kind")


@torch.no_grad()
def compare(
    old: Generator, new: Generator, extractor: FeatureExtractor, *, num: int, seed: int, psis: Sequence[float] = ()
) -> Comparison:
    """Compares two generators at `num` latents, with classes in turn and the networks' fixed noise.

    Args:
        old, new: two generators on one device, see `check_comparable`; they are not changed.
        extractor: on the same device.
        num: number of latents.
        seed: the seed of the latents.
        psis: further truncations to compare at, for StyleGAN2 generators.
    """
    check_comparable(old, new)
    device = next(old.parameters()).device
    z = old.sample_latents(num, rng=SampleRandom(seed, "compare", 0, range(num), device))
    labels = None
    if old.label_dim:
        labels = one_hot(torch.arange(num, device=device) % old.label_dim, old.label_dim)
    if old.label_law.vectors is not None:
        labels = old.sample_labels(rng=SampleRandom(seed, "compare labels", 0, range(num), device))

    def at(psi: float) -> tuple[TruncationPoint, Tensor, Tensor]:
        if psi != 1 and "trunc" not in old.options:
            raise UserError(f"truncation is for GANs; this network is a {old.kind}: give --psi=none")
        shown = (old, new) if psi == 1 else (old.with_options(trunc=psi), new.with_options(trunc=psi))
        first, second = (generator.in_batches(z, labels, BATCH).clamp(-1, 1) for generator in shown)
        features = [
            torch.cat([extractor(to_rgb(to_uint8(part))) for part in images.split(BATCH)]) for images in (first, second)
        ]
        point = TruncationPoint(
            psi=psi,
            pixel_distance=float((first - second).abs().mean()),
            feature_distance=float((features[0] - features[1]).norm(dim=1).mean()),
            spread_old=float(first.std(0, correction=0).mean()),
            spread_new=float(second.std(0, correction=0).mean()),
        )
        return point, first, second

    plain, first, second = at(1.0)
    return Comparison(first, second, plain, tuple(plain if psi == 1 else at(psi)[0] for psi in psis))
