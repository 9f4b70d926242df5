"""A hash of a module's weights, by which equal networks are recognised."""

from __future__ import annotations

import hashlib

import torch


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of the bytes of a module's weights and buffers, in the order of its state_dict; hexadecimal digits."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
