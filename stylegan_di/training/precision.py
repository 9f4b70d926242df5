"""--amp=auto: whether this machine is faster in bf16 or in float32, measured once, before a run begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from stylegan_di.interfaces import Denoiser
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.precision import AMP_TYPES, autocast
from stylegan_di.training.methods.base import Method
from stylegan_di.training.optimize import trainable

IMAGES = 16  # in a pass that is timed, or the run's batch where that is smaller
ROUNDS = 3  # passes in each type; the fastest counts, as other work can only slow one down
CHOICES = ("none", "bf16")


def settle(method: Method) -> list[tuple[str, str]]:
    """Puts what `choose` says in the place of --amp=auto in a method's options; returns lines of the run's header."""
    if method.config.amp != "auto":
        return []
    chosen, why = choose(method)
    method.config = replace(method.config, amp=chosen)  # type: ignore[arg-type]
    return [("amp", why)]


def choose(method: Method, clock: Callable[[], float] = time.perf_counter) -> tuple[str, str]:
    """Returns the --amp in which a pass of the trained denoiser, forward and backward, takes less time, and why.

    On a GPU it is bf16 without a measurement. All processes get the first one's choice.
    """
    if method.device.type == "cuda":
        return "bf16", "bf16: this is a GPU"
    denoisers = (network for network in method.state.networks.values() if isinstance(network, Denoiser))
    denoiser = next(denoisers, None)
    if denoiser is None:
        return "none", "float32: no denoiser is trained"
    seconds = {amp: min(_seconds(denoiser, method, amp, clock) for _ in range(ROUNDS)) for amp in CHOICES}
    chosen = distributed.broadcast_string(min(CHOICES, key=seconds.__getitem__))
    names = {"none": "float32", "bf16": "bf16"}
    times = ", ".join(f"{seconds[amp]:.3f} s in {names[amp]}" for amp in CHOICES)
    return chosen, f"{names[chosen]}: a pass of {_batch(method)} images takes {times}"


def _batch(method: Method) -> int:
    return min(IMAGES, method.config.batch)


def _seconds(denoiser: Denoiser, method: Method, amp: str, clock: Callable[[], float]) -> float:
    shape = [_batch(method), *denoiser.image_shape]
    x, sigma = torch.zeros(shape, device=method.device), torch.ones(shape[0], device=method.device)
    labels = torch.zeros([shape[0], denoiser.label_dim], device=method.device) if denoiser.label_dim else None
    with trainable(denoiser, train_mode=False):
        start = clock()
        with autocast(method.device, AMP_TYPES.get(amp), cached=False):
            denoiser(x, sigma, labels).sum().backward()
        took = clock() - start
        denoiser.zero_grad(set_to_none=True)
    return took
