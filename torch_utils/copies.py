"""Copies from the CPU to a device that do not make the CPU wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor on a device; to a GPU by way of pinned memory, so that the CPU goes on during the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory, a copy waits for all work that the GPU was given before
    return tensor.to(device, non_blocking=True)
