"""Updates networks: Adam, gradient averaging over chunks and processes, and skipping of bad updates.

Gradients are means over the samples of the step, accumulated over chunks and averaged over processes. An update whose
gradients are not finite, or have a norm above EXPLODED, is skipped and recorded in the state; otherwise each gradient
is clamped to +-GRADIENT_LIMIT, as in StyleGAN2-ADA and Diff-Instruct.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stylegan_di.torch_utils import distributed
from stylegan_di.training.state import TrainState

GRADIENT_LIMIT = 1e5
EXPLODED = 1e8


def adam(
    module: torch.nn.Module, lr: float, *, beta1: float, beta2: float, interval: int | None = None
) -> torch.optim.Adam:
    """Returns Adam for a network.

    interval: steps between lazy regularisations, by which rate and betas are corrected (arXiv 1912.04958, app. B).
    """
    ratio = 1.0 if interval is None else interval / (interval + 1)
    betas = (float(beta1) ** ratio, float(beta2) ** ratio)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr * ratio, betas=betas, eps=1e-8, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr * ratio
    return optimizer


@contextmanager
def trainable(module: torch.nn.Module, *, train_mode: bool) -> Iterator[None]:
    """Enables the parameters' gradients while inside; train_mode also enables dropout and running means."""
    module.train(train_mode).requires_grad_(True)
    try:
        yield
    finally:
        module.eval().requires_grad_(False)


def apply_gradients(state: TrainState, role: str) -> Tensor:
    """Averages a network's gradients over processes and steps its optimizer, or skips the step and records that.

    The decision stays on the device: a fused optimizer leaves weights, moments and its step count unchanged if its
    `found_inf` is 1.

    Returns the norm of the gradients, [1]; NaN where the step was skipped.
    """
    optimizer = state.optimizers[role]
    gradients = [parameter.grad for parameter in state.networks[role].parameters() if parameter.grad is not None]
    distributed.average(gradients)
    norm = distributed.whole(torch.nn.utils.get_total_norm(gradients))
    taken = norm <= EXPLODED  # false for NaN
    torch._foreach_clamp_min_(gradients, -GRADIENT_LIMIT)
    torch._foreach_clamp_max_(gradients, GRADIENT_LIMIT)
    optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.undecided.append((state.cur_step, role, ~taken))
    return torch.where(taken, norm, torch.nan).reshape(1)
