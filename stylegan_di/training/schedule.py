"""Schedules by images seen: learning rates and the averaging of the weights."""

from __future__ import annotations

import math

import torch


def lr_scale(nimg: int, *, kimg: float, rampup: float, decay: float | None) -> float:
    """Returns the factor on the learning rates: a linear rise, then a linear fall to 3 %.

    Args:
        nimg: images seen.
        kimg: length of the run in thousands of images.
        rampup: thousands of images over which they rise; 0 for no rise.
        decay: share of the run after which they fall; None for no fall.
    """
    scale = 1.0
    if rampup:
        scale = min(nimg / (rampup * 1000), 1.0)
    if decay is not None:
        done = (nimg / (kimg * 1000) - decay) / (1 - decay)
        scale *= 1 - 0.97 * min(max(done, 0.0), 1.0)
    return scale


def annealing(nimg: int, kimg: float) -> float:
    """Returns the share of R3GAN's schedules that is done: from 0 to 1 along half a cosine; 0 without a length.

    Args:
        nimg: images seen.
        kimg: length of the schedules in thousands of images.
    """
    return (1 - math.cos(math.pi * min(nimg / (kimg * 1000), 1))) / 2 if kimg else 0.0


def ema_beta(batch: int, *, halflife_kimg: float, rampup: float | None, nimg: int) -> float:
    """Returns the weight of the old average: 0.5^(batch / half-life) (as in StyleGAN2-ADA and EDM).

    Args:
        batch: images per step.
        halflife_kimg: half-life in thousands of images; 0 switches the average off.
        rampup: limits the half-life to rampup * nimg early in training; None or 0 for no limit.
        nimg: images seen when the step began, as NVlabs count.
    """
    halflife = halflife_kimg * 1000
    if rampup:
        halflife = min(halflife, nimg * rampup)
    return 0.5 ** (batch / max(halflife, 1e-8))


@torch.no_grad()
def update_ema(ema: torch.nn.Module, model: torch.nn.Module, beta: float) -> None:
    """Sets ema to lerp(model, ema, beta) for parameters, and copies buffers."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - beta)
    for target, source in zip(ema.buffers(), model.buffers(), strict=True):
        target.copy_(source)
