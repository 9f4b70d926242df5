"""Mixes styles between images and makes loops, on a StyleGAN2's mapped latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

_STYLES = (7, 18)  # the first 7 of 18 styles, and the same proportion at other resolutions


def coarse_styles(num_ws: int) -> list[int]:
    """Returns the styles that determine pose and shape: 0-6 of 18, or in proportion."""
    return list(range(max(1, num_ws * _STYLES[0] // _STYLES[1])))


def mix_styles(row_ws: Tensor, col_ws: Tensor, styles: Sequence[int]) -> Tensor:
    """Combines every row with every column's styles (Karras et al. 2019, arXiv 1812.04948, section 3.1).

    Args:
        row_ws, col_ws: [R,num_ws,w_dim] and [C,num_ws,w_dim].
        styles: the indices, 0 to num_ws - 1, of the styles taken from the column.

    Returns [R,C,num_ws,w_dim].
    """
    mixed = row_ws[:, None].repeat(1, len(col_ws), 1, 1)
    mixed[:, :, list(styles)] = col_ws[None, :, list(styles)]
    return mixed


def loop(keyframes: Tensor, frames: int) -> Tensor:
    """Returns a smooth closed path through keyframes; when it is repeated there is no jump from last frame to first.

    The path is a periodic cubic spline: keyframe k is at frame k * frames / K, and frame `frames` would be frame 0.

    Args:
        keyframes: [K,...] with K >= 2.
        frames: number of frames, >= 1.

    Returns [frames,...] on the CPU.
    """
    if len(keyframes) < 2:
        raise ValueError(f"{len(keyframes)} keyframes; a loop needs two")
    points = keyframes.cpu().double().numpy()
    spline = CubicSpline(np.arange(len(points) + 1), np.concatenate([points, points[:1]]), bc_type="periodic")
    path = spline(np.arange(frames) * (len(points) / frames))
    return torch.from_numpy(path).to(keyframes.dtype)
