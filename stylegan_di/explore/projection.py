"""Projection of an image into the w of a StyleGAN2 generator (Karras et al. 2020, arXiv 1912.04958, appendix D).

It finds one w, the same for every layer, and noise maps n_i, such that the image g(w, n) is close to the target:

    min over w, n:  |f(g(w + e, n)) - f(target)|^2  +  1e5 * sum over the maps of their autocorrelation

f maps images to features. w starts at the mean of mapped latents; e is normal noise of deviation 0.05 sigma_w t^2,
where sigma_w^2 = E|w - mean|^2 and t falls from 1 to 0 in the first three quarters of the steps. The second term keeps
the noise maps from encoding the image; after each step they are normalised to mean 0 and variance 1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from stylegan_di import interfaces
from stylegan_di.dnnlib.untrusted import Budget, open_untrusted, untrusted
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.images import from_uint8, to_uint8
from stylegan_di.labels import Chosen
from stylegan_di.metrics.statistics import read_npz
from stylegan_di.metrics.vgg16 import LPIPS
from stylegan_di.networks.refiner import RefinerOfW
from stylegan_di.networks.stylegan2 import Generator
from stylegan_di.random import SampleRandom

Features = Callable[[Tensor], Tensor]  # images [N,C,H,W], nominally in [-1,1] -> [N,F]; distance: sum of squares

OfW = Generator | RefinerOfW  # or stylegan3.Generator, which has no noise maps: images are synthesis(w)

LEARNING_RATE = 0.1
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps: linear rise of the learning rate, and its fall as half a cosine
EXPLORATION, EXPLORED = 0.05, 0.75  # initial deviation of e in units of sigma_w; share of the steps that use e
REGULARIZATION = 1e5
W_SAMPLES = 10_000
LPIPS_SIDE = 256  # larger images are averaged down to this size before they are compared
SMALLEST_MAP = 8  # the smallest scale at which autocorrelation is computed


@dataclass(frozen=True)
class Projection:
    """The result of a projection.

    `w` is [w_dim]; `noises` are [R,R] by buffer, such as 'b8.conv0.noise_const'; `path` [steps,w_dim] is w after each
    step; `start` and `end` are the distances from the target at the mean w and at `w`, without e.
    """

    w: Tensor
    noises: dict[str, Tensor]
    path: Tensor
    start: float
    end: float


def multi_scale(images: Tensor) -> Tensor:
    """Returns features [N,F] that need no weights: the pixels at every scale, halved by averaging down to 1x1.

    The distance is the sum over the scales of the mean squared difference; coarse scales give it a wide basin.
    """
    scales = []
    while True:
        scales.append(images.flatten(1) / math.sqrt(images[0].numel()))
        if images.shape[-1] == 1:
            return torch.cat(scales, dim=1)
        images = F.avg_pool2d(images, 2)


def perceptual(lpips: LPIPS) -> Features:
    """Returns features whose distance is LPIPS; gray images become RGB, large ones are reduced to LPIPS_SIDE."""

    def features(images: Tensor) -> Tensor:
        if images.shape[-1] > LPIPS_SIDE:
            images = F.interpolate(images, size=[LPIPS_SIDE, LPIPS_SIDE], mode="area")
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return lpips(rgb * 127.5 + 128)

    return features


def render(network: OfW, ws: Tensor, noises: Mapping[str, Tensor]) -> Tensor:
    """Renders ws [N,num_ws,w_dim] to images float32 [N,C,R,R]; `noises` replace the network's own noise maps."""
    return functional_call(network.synthesis, dict(noises), (ws,), {"noise_mode": "const", "force_fp32": True})


def project(
    network: OfW,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    features: Features = multi_scale,
    num_steps: int = 1000,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda done, distance: None,
) -> Projection:
    """Projects a target, uint8 [C,R,R].

    Args:
        network: the generator, in evaluation mode; it is not changed.
        labels: [1,c_dim] one-hot, for a conditional network.
        features: the features between which the distance is measured.
        num_steps: number of optimisation steps.
        seed: the seed of the sampled latents and all noise.
        report: called after each step with the number of steps done and the distance.
    """
    device = target.device
    wanted = features(from_uint8(target[None])).detach()
    mean, deviation = w_statistics(network, labels, seed, device)
    random = SampleRandom(seed, "projection", 0, [0], device)
    w = mean.clone().requires_grad_()
    noises = {name: random.normal(*own.shape)[0].requires_grad_() for name, own in noise_maps(network).items()}
    optimizer = torch.optim.Adam([w, *noises.values()], betas=(0.9, 0.999), lr=LEARNING_RATE)

    def distance(at: Tensor) -> Tensor:
        return (features(render(network, at.expand(1, network.num_ws, -1), noises)) - wanted).square().sum()

    with torch.no_grad():
        start = float(distance(w))
    path = []
    for step in range(num_steps):
        done = step / num_steps
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate(done)
        spread = EXPLORATION * deviation * max(0.0, 1 - done / EXPLORED) ** 2
        found = distance(w + spread * random.normal(len(w))[0])
        loss = found + REGULARIZATION * sum((autocorrelation(noise) for noise in noises.values()), start=0)
        optimizer.zero_grad()
        loss.backward(inputs=[w, *noises.values()])
        optimizer.step()
        with torch.no_grad():
            for noise in noises.values():
                noise.copy_((noise - noise.mean()) / noise.std(correction=0))
        path.append(w.detach().clone())
        report(step + 1, found.item())
    with torch.no_grad():
        end = float(distance(w))
    kept = {name: noise.detach() for name, noise in noises.items()}
    return Projection(w.detach(), kept, torch.stack(path), start, end)


def noise_maps(network: OfW) -> dict[str, Tensor]:
    """Returns the network's own noise maps [R,R], by their buffers' names in the synthesis network."""
    return {name: buffer for name, buffer in network.synthesis.named_buffers() if name.endswith("noise_const")}


@torch.no_grad()
def w_statistics(
    network: OfW, labels: Tensor | None, seed: int, device: torch.device
) -> tuple[Tensor, float]:
    """Returns the mean [w_dim] of mapped latents and sigma_w, from W_SAMPLES of them."""
    z = SampleRandom(seed, "projection-w", 0, [0], device).normal(W_SAMPLES, network.z_dim)[0]
    w = network.mapping(z, None if labels is None else labels.expand(W_SAMPLES, -1))[:, 0]
    mean = w.mean(dim=0)
    return mean, float((w - mean).square().sum(dim=1).mean().sqrt())


def rate(done: float) -> float:
    """Returns the factor on the learning rate after a share `done` of the steps."""
    falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / RAMP_DOWN))
    return falling * min(1.0, done / RAMP_UP)


def autocorrelation(noise: Tensor) -> Tensor:
    """Returns a noise map's [R,R] squared autocorrelation at shift 1, summed over scales down to SMALLEST_MAP."""
    total = noise.new_zeros([])
    while True:
        for axis in (0, 1):
            total = total + (noise * noise.roll(1, dims=axis)).mean().square()
        if len(noise) <= SMALLEST_MAP:
            return total
        noise = F.avg_pool2d(noise[None], 2)[0] * 2  # the factor 2 keeps the variance at 1


def projected_images(network: OfW, projection: Projection, steps: list[int]) -> Tensor:
    """Draws images uint8 [n,C,R,R], on the CPU, of w at the given steps of the path, with the final noise maps."""
    ws = projection.path[steps, None].expand(-1, network.num_ws, -1)
    return draw(network, ws, projection.noises)


@torch.no_grad()
def draw(network: OfW, ws: Tensor, noises: Mapping[str, Tensor]) -> Tensor:
    """Renders images one by one, see `render`, and returns them as uint8 on the CPU."""
    return to_uint8(torch.cat([render(network, one[None], noises) for one in ws])).cpu()


def save_projection(projection: Projection, network: OfW, path: Path) -> None:
    """Writes w [1,num_ws,w_dim], as NVlabs' tools do, and the noise maps by their buffers' names to an .npz file."""
    w = projection.w.expand(1, network.num_ws, -1)
    arrays: dict[str, Any] = {name: array.cpu().numpy() for name, array in ({"w": w} | projection.noises).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def joined_ws(
    gan: interfaces.Generator, paths: Sequence[Path], seeds: Sequence[int], class_index: Chosen | None
) -> tuple[Tensor, list[int]]:
    """Returns ws [n,num_ws,w_dim] of projections and, after them, of seeds, and the n seeds of their random noise.

    Projections have the noise of seed 0; for class_index see `Generator.draw`.
    """
    network: Any = gan.network
    parts = [load_projection(path, network)[0] for path in paths]
    projected = sum(map(len, parts))
    if seeds:
        parts.append(gan.mapped(seeds, class_index=class_index))
    return torch.cat(parts), [0] * projected + list(seeds)


def load_projection(path: Path, network: OfW) -> tuple[Tensor, dict[str, Tensor]]:
    """Loads ws [N,num_ws,w_dim] and noise maps from an .npz file onto the network's device; NVlabs' files have no maps.

    Raises UserError if the file is no .npz or was made with another network.
    """
    own = noise_maps(network)
    remedy = "Give the projected_w.npz of a projection."
    with untrusted(str(path), remedy=remedy), open_untrusted(path) as (file, size):
        arrays = {name: torch.from_numpy(array).float() for name, array in read_npz(file, None, Budget(size)).items()}
    ws = arrays.pop("w", torch.empty(0))
    if ws.ndim != 3 or not len(ws) or ws.shape[1:] != (network.num_ws, network.w_dim):
        found = f"w of shape {list(ws.shape)}" if ws.numel() else "no w"
        raise UserError(f"{path} has {found}; this network needs w of shape [N, {network.num_ws}, {network.w_dim}].")
    for name, array in arrays.items():
        if name not in own or own[name].shape != array.shape:
            raise UserError(f"{path} has {name} of shape {list(array.shape)}, which this network does not have.")
    device = next(network.parameters()).device
    return ws.to(device), {name: array.to(device) for name, array in arrays.items()}
