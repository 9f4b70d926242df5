"""Exponential moving average of weights, with a half-life in images and a ramp-up (as in StyleGAN2-ADA and EDM)."""

from __future__ import annotations

import torch


def ema_beta(batch: int, *, halflife_kimg: float, rampup: float | None, nimg: int) -> float:
    """The factor that keeps the average: 0.5^(batch / half-life).

    Args:
        batch: images a step.
        halflife_kimg: half-life in thousands of images; 0 switches the average off.
        rampup: while training is young the half-life is at most rampup * nimg; None: no ramp-up.
        nimg: images seen.
    """
    halflife = halflife_kimg * 1000
    if rampup is not None:
        halflife = min(halflife, nimg * rampup)
    return 0.5 ** (batch / max(halflife, 1e-8))


@torch.no_grad()
def update_ema(ema: torch.nn.Module, model: torch.nn.Module, beta: float) -> None:
    """ema <- lerp(model, ema, beta) for parameters; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - beta)
    for target, source in zip(ema.buffers(), model.buffers(), strict=True):
        target.copy_(source)
