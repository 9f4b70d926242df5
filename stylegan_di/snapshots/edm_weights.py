"""Describes EDM's ADM network given its weights alone, as DMD2 publishes its students (arXiv 2405.14867).

The names and shapes of the weights tell all of the constructor's arguments but the preconditioning, which is EDM's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stylegan_di.snapshots.blueprint import Blueprint

MARK = "model.map_layer0.weight"  # which every one has


def to_blueprint(weights: Mapping[str, Tensor]) -> Blueprint:
    """Describes the network of a state dict; that the other weights fit is checked when it is built.

    Raises:
        KeyError, IndexError: a weight that tells of the others is missing.
    """
    channels = weights[MARK].shape[1]
    pattern = re.compile(r"model\.enc\.(\d+)x\1_block\d+\.conv0\.weight")
    blocks = [found for key in weights if (found := pattern.fullmatch(key))]
    levels = sorted({int(block[1]) for block in blocks}, reverse=True)
    first = weights[f"model.enc.{levels[0]}x{levels[0]}_conv.weight"]
    labels = weights.get("model.map_label.weight")
    arguments: dict[str, Any] = {
        "img_resolution": levels[0],
        "img_channels": first.shape[1],
        "label_dim": 0 if labels is None else labels.shape[1],
        "model_channels": channels,
        "channel_mult": [weights[f"model.enc.{res}x{res}_block0.conv0.weight"].shape[0] // channels for res in levels],
        "num_blocks": len(blocks) // len(levels),
        "attn_resolutions": [res for res in levels if f"model.enc.{res}x{res}_block0.qkv.weight" in weights],
    }
    return Blueprint("EDMPrecond", (), arguments, weights)
