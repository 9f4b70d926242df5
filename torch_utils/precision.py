"""Types of numbers: float64 where a device has it (Apple's GPUs, mps, have float32 at most), 16 bits by autocast."""

from __future__ import annotations

import torch
from torch import Tensor

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by the options' names
WITHOUT_FLOAT64 = {"mps"}  # types of devices


def autocast(device: torch.device | str, dtype: torch.dtype | None, *, cached: bool = True) -> torch.autocast:
    """Inside this context convolutions and products on `device` are computed in `dtype`; None changes nothing.

    cached: keeps the parameters' casts inside the context, where parameters must not change.
    """
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None, cache_enabled=cached)


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on a device, in float32 if it is float64 and the device has none."""
    return (x.to(widest(device)) if x.dtype == torch.float64 else x).to(device)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float64 if it is so, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def as_float64(x: Tensor) -> Tensor:
    """x in float64: on its device, or on the CPU where its device has no float64."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()
