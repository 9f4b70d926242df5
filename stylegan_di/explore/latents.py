"""What is done with a StyleGAN2's mapped latents: styles mixed between images, loops through them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

_STYLES = (7, 18)  # by default the first 7 of 18 styles are mixed, at other resolutions as many in proportion


def coarse_styles(num_ws: int) -> list[int]:
    """The styles that give an image its pose and shape: 0-6 of 18."""
    return list(range(max(1, num_ws * _STYLES[0] // _STYLES[1])))


def mix_styles(row_ws: Tensor, col_ws: Tensor, styles: Sequence[int]) -> Tensor:
    """Every row with every column's styles (Karras et al. 2019, arXiv 1812.04948, section 3.1).

    Args:
        row_ws, col_ws: [R,num_ws,w_dim] and [C,num_ws,w_dim].
        styles: the indices, 0 to num_ws - 1, taken from the column.

    Returns [R,C,num_ws,w_dim].
    """
    mixed = row_ws[:, None].repeat(1, len(col_ws), 1, 1)
    mixed[:, :, list(styles)] = col_ws[None, :, list(styles)]
    return mixed


def loop(keyframes: Tensor, frames: int) -> Tensor:
    """A smooth closed path through keyframes, which the first frame follows the last of without a jump.

    The path is the periodic cubic spline: keyframe k stands at frame k * frames / K, and frame number `frames` would
    be frame 0 again.

    Args:
        keyframes: [K,...] with K >= 2.
        frames: how many, >= 1.

    Returns [frames,...] on the CPU.
    """
    if len(keyframes) < 2:
        raise ValueError(f"{len(keyframes)} keyframes; a loop needs two")
    points = keyframes.cpu().double().numpy()
    spline = CubicSpline(np.arange(len(points) + 1), np.concatenate([points, points[:1]]), bc_type="periodic")
    path = spline(np.arange(frames) * (len(points) / frames))
    return torch.from_numpy(path).to(keyframes.dtype)
