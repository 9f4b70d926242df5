"""The perceptual path length of a StyleGAN2 or StyleGAN3 (Karras et al. 2018, arXiv 1812.04948, section 4.1).

    E_t [ LPIPS(G(p(t)), G(p(t + epsilon))) / epsilon^2 ]

along paths p between two random latents: great circles in z or straight lines in w, at random t ('full') or at their
beginning ('end'). Values below the first and above the 99th percentile are left out of the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import to_rgb
from stylegan_di.interfaces import Generator
from stylegan_di.metrics.features import evaluation_mode
from stylegan_di.metrics.vgg16 import LPIPS
from stylegan_di.networks import stylegan2, stylegan3
from stylegan_di.random import SampleRandom
from stylegan_di.torch_utils import distributed

EPSILON = 1e-4
RESOLUTION = 256  # larger images are averaged down to about this
SMALLEST = 16  # side in pixels, which VGG-16 halves four times


@dataclass(frozen=True)
class Path:
    """The kind of paths: `space` and `sampling` are as above; `crop` crops the images to where FFHQ's faces are."""

    space: Literal["z", "w"]
    sampling: Literal["full", "end"]
    crop: bool


def trimmed_mean(distances: np.ndarray) -> float:
    """The mean of distances [N] without those below the 1st and above the 99th percentile, which are two of them."""
    low = np.percentile(distances, 1, method="lower")
    high = np.percentile(distances, 99, method="higher")
    return float(distances[(distances >= low) & (distances <= high)].mean())


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Unit vectors [N,dim] on the great circle from a's direction (t = 0) to b's (t = 1); a, b [N,dim], t [N,1]."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    cosine = (a * b).sum(dim=1, keepdim=True)
    angle = t * cosine.acos()
    across = F.normalize(b - cosine * a, dim=1)
    return F.normalize(a * angle.cos() + across * angle.sin(), dim=1)


def path_distances(
    generator: Generator,
    lpips: LPIPS,
    path: Path,
    *,
    num: int,
    batch: int,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Squared LPIPS speeds [num] on as many paths of a StyleGAN generator, on its device, in evaluation mode.

    Each path draws its own labels, by the generator's law, and its own noise; both are the same at its two points.

    All processes of a run call it inside `distributed.together` and share the paths; the first gets the speeds, the
    others get an empty array.

    Args:
        report: called in every process with the number of paths that all have done.

    Raises:
        UserError: if the generator is no StyleGAN, is truncated, or makes images that are too small for VGG-16.
    """
    network = _measurable(generator, path)
    device = next(network.parameters()).device
    found: list[Tensor] = []

    def distances(indices: range) -> list[Tensor]:
        ends = []
        for ws in _points(generator, network, path, SampleRandom(seed, "path", 0, indices, device)):
            noise: dict[str, Any] = {}
            if isinstance(network, stylegan2.Generator):  # the same at both points
                noise["noise_source"] = SampleRandom(seed, "path noise", 0, indices, device).normal
            images = network.synthesis(ws, force_fp32=True, **noise)
            ends.append(lpips(_prepare(images, path.crop)))
        return [((ends[0] - ends[1]).square().sum(dim=1) / EPSILON**2).cpu()]

    with torch.no_grad(), evaluation_mode(generator):
        distributed.share_out(num, batch, distances, found.extend, report)
    return torch.cat(found).numpy() if found else np.empty(0)


def _measurable(generator: Generator, path: Path) -> stylegan2.Generator | stylegan3.Generator:
    """The network of a generator that has such paths; UserError if it has none."""
    network = getattr(generator, "network", None)
    if not isinstance(network, stylegan2.Generator | stylegan3.Generator):
        raise UserError("path lengths (ppl...) are for a GAN, which has a mapping network; choose other --metrics")
    if getattr(generator, "trunc", 1) != 1:
        raise UserError("path lengths (ppl...) are defined without truncation; leave --trunc out")
    least = SMALLEST * (2 if path.crop else 1)
    if network.img_resolution < least:
        raise UserError(f"this path length needs images of {least} pixels or more; choose other --metrics")
    return network


def _points(
    generator: Generator, network: stylegan2.Generator | stylegan3.Generator, path: Path, rng: SampleRandom
) -> tuple[Tensor, Tensor]:
    """Two neighbouring points on each path, ws [B,num_ws,w_dim]."""
    dtype = next(network.parameters()).dtype
    t = (rng.uniform(1) if path.sampling == "full" else torch.zeros([len(rng), 1], device=rng.device)).to(dtype)
    drawn = generator.sample_labels(rng=rng)
    labels = None if drawn is None else drawn.to(dtype)
    a, b = rng.normal(network.z_dim).to(dtype), rng.normal(network.z_dim).to(dtype)
    if path.space == "z":
        return network.mapping(slerp(a, b, t), labels), network.mapping(slerp(a, b, t + EPSILON), labels)
    a, b = network.mapping(a, labels), network.mapping(b, labels)
    return a.lerp(b, t[:, :, None]), a.lerp(b, t[:, :, None] + EPSILON)


def _prepare(images: Tensor, crop: bool) -> Tensor:
    """Turns images in [-1,1] into LPIPS's input: cropped if `crop`, averaged down to about 256 pixels, RGB, 0..255."""
    if crop:
        eighth = images.shape[2] // 8
        images = images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]
    factor = images.shape[2] // RESOLUTION
    if factor > 1:
        images = F.avg_pool2d(images, factor)
    return to_rgb((images + 1) * 127.5)
