"""Weights of a narrow VGG-16 and of LPIPS on it, by a recipe that anyone can repeat."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

CHANNELS, HIDDEN = [3, 4, 5, 6, 4], 8
CONVOLUTIONS = (0, 2, -1, 5, 7, -1, 10, 12, 14, -1, 17, 19, 21, -1, 24, 26, 28, -1)  # by torchvision's index; -1: pool


def recipe() -> dict[str, np.ndarray]:
    """Every tensor from RandomState(crc32(name)): weights of deviation sqrt(2 / fan_in), biases of 0.1; float64."""
    widths = [CHANNELS[depth] for depth, count in enumerate((2, 2, 3, 3, 3)) for _ in range(count)]
    indices = [index for index in CONVOLUTIONS if index >= 0]
    shapes: dict[str, list[int]] = {}
    for index, before, out in zip(indices, [3, *widths], widths, strict=False):
        shapes |= {f"features.{index}.weight": [out, before, 3, 3], f"features.{index}.bias": [out]}
    for index, before, out in ((0, CHANNELS[-1] * 49, HIDDEN), (3, HIDDEN, HIDDEN), (6, HIDDEN, 10)):
        shapes |= {f"classifier.{index}.weight": [out, before], f"classifier.{index}.bias": [out]}
    return {name: draw(name, shape) for name, shape in shapes.items()}


def draw(name: str, shape: list[int]) -> np.ndarray:
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return values * (np.sqrt(2 / np.prod(shape[1:])) if name.endswith("weight") else 0.1)


def lin_recipe() -> dict[str, np.ndarray]:
    return {
        f"lin{depth}.model.1.weight": np.abs(draw(f"lin{depth}.weight", [1, width, 1, 1]))
        for depth, width in enumerate(CHANNELS)
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
