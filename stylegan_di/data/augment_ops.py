"""The operations of augmentation for given values: transform matrices, resampling, colour and frequency-band filters.

Karras et al. 2020 (arXiv 2006.06676), appendix B; every function of images is twice differentiable in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils.ops import upfirdn2d

#: Whether PyTorch differentiates F.grid_sample twice, which it does from 2.12 on.
TWICE_DIFFERENTIABLE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)

# Decomposition low-pass filters of the wavelets sym6 and sym2 (Daubechies, Ten Lectures on Wavelets, 1992).
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
SYM2 = tuple(np.array([1 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 1 + 3**0.5]) / (4 * 2**0.5))


def resample(images: Tensor, G_inv: Tensor, low_pass: Tensor) -> Tensor:
    """Moves the pixels of images [N,C,H,W] by G_inv [N,3,3], in pixels from the centre; reflects at the borders.

    low_pass is the filter [12] of the upsampling before and the downsampling after (Karras et al. 2020, B.1).
    """
    height, width = images.shape[2:]
    reach = len(low_pass) // 4  # the filter widens an image by this many original pixels on each side
    images, G_inv = _pad_to_cover(images, G_inv, 2 * reach)
    images = upfirdn2d.upsample2d(images, low_pass, up=2)
    G_inv = scale2d(2, 2).to(G_inv) @ G_inv @ scale2d(0.5, 0.5).to(G_inv)
    G_inv = translate2d(-0.5, -0.5).to(G_inv) @ G_inv @ translate2d(0.5, 0.5).to(G_inv)
    shape = [len(images), images.shape[1], (height + 2 * reach) * 2, (width + 2 * reach) * 2]
    to_unit = scale2d(2 / images.shape[3], 2 / images.shape[2]).to(G_inv)
    from_unit = scale2d(shape[3] / 2, shape[2] / 2).to(G_inv)
    grid = F.affine_grid((to_unit @ G_inv @ from_unit)[:, :2], shape, align_corners=False)
    images = sample_bilinear(images, grid.to(images.dtype))
    return upfirdn2d.downsample2d(images, low_pass, down=2, padding=-2 * reach, flip_filter=True)


def sample_bilinear(images: Tensor, grid: Tensor) -> Tensor:
    """The values of images [N,C,H,W] at positions [N,h,w,2] (x, y) in [-1,1]^2, interpolated; zero outside."""
    if TWICE_DIFFERENTIABLE:
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    height, width = images.shape[2:]
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2  # in pixels
    left, top = x.floor(), y.floor()
    pixels = images.flatten(2)
    result = images.new_zeros([])
    for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            index = index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
            values = pixels.gather(2, index).unflatten(2, grid.shape[1:3])
            result = result + values * (share_x * share_y * inside)[:, None]
    return result


def _pad_to_cover(images: Tensor, G_inv: Tensor, extra: int) -> tuple[Tensor, Tensor]:
    """Reflect-pads the whole batch enough for every output pixel to find its input, and by `extra` pixels more."""
    height, width = images.shape[2:]
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-cx, cx, cx, -cx], [-cy, -cy, cy, cy], [1, 1, 1, 1]]).to(G_inv)
    x, y, _ = (G_inv @ corners).unbind(1)
    reached = torch.stack([-x.amin(), -y.amin(), x.amax(), y.amax()])
    beyond = reached + torch.tensor([extra - cx, extra - cy] * 2).to(G_inv)
    limit = torch.tensor([width - 1, height - 1] * 2).to(G_inv)
    left, top, right, bottom = (int(margin) for margin in beyond.clamp_min(0).minimum(limit).ceil().tolist())
    padded = F.pad(images, [left, right, top, bottom], mode="reflect")
    return padded, translate2d((left - right) / 2, (top - bottom) / 2).to(G_inv) @ G_inv


def recolor(images: Tensor, C: Tensor) -> Tensor:
    """Applies the affine colour transforms C [N,4,4] to images [N,C,H,W], C = 1 or 3."""
    n, channels, height, width = images.shape
    C = C.to(images.dtype)
    if channels == 3:
        return (C[:, :3, :3] @ images.reshape(n, 3, -1) + C[:, :3, 3:]).reshape(n, 3, height, width)
    if channels == 1:
        gain, offset = C[:, :3, :3].sum(dim=2).mean(dim=1), C[:, :3, 3].mean(dim=1)
        return images * gain[:, None, None, None] + offset[:, None, None, None]
    raise ValueError(f"images of {channels} channels; expected 1 (gray) or 3 (RGB)")


def filter_bands(images: Tensor, filters: Tensor) -> Tensor:
    """Convolves each of images [N,C,H,W] with its symmetric filter [N,taps] along x and y; reflects at the borders."""
    n, channels, height, width = images.shape
    reach = filters.shape[1] // 2
    if min(height, width) <= reach:
        raise UserError(
            f"augmentation by imgfilter needs images larger than {reach} pixels, not {width}x{height}; "
            "use a pipe without imgfilter, such as bgc."
        )
    weight = filters.to(images.dtype).repeat_interleave(channels, dim=0)
    x = F.pad(images.reshape(1, n * channels, height, width), [reach] * 4, mode="reflect")
    x = F.conv2d(x, weight[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, weight[:, None, :, None], groups=n * channels)
    return x.reshape(images.shape)


def frequency_bands() -> np.ndarray:
    """Returns the filters float64 [4,43] of four octaves, lowest first, which sum to the unit impulse.

    They are built from the sym2 wavelet's autocorrelations, a low-pass and a high-pass half-band filter (ADA, B.3).
    """
    low = np.array(SYM2)
    high = low * (-1.0) ** np.arange(low.size)
    low, high = np.convolve(low, low[::-1]) / 2, np.convolve(high, high[::-1]) / 2
    bands = np.eye(4, 1)
    for band in range(1, 4):
        widened = np.zeros([4, 2 * bands.shape[1] - 1])
        widened[:, ::2] = bands
        bands = np.stack([np.convolve(row, low) for row in widened])
        start = (bands.shape[1] - high.size) // 2
        bands[band, start : start + high.size] += high
    return bands


def matrix(rows: Sequence[Sequence[float | Tensor]]) -> Tensor:
    """Makes a matrix [N,n,n] from numbers and tensors [N]; [n,n] if all are numbers."""
    tensors = [x for row in rows for x in row if isinstance(x, Tensor)]
    if not tensors:
        return torch.tensor(rows, dtype=torch.float64)
    full = [[x if isinstance(x, Tensor) else torch.full_like(tensors[0], x) for x in row] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in full], dim=-2)


def translate2d(tx: float | Tensor, ty: float | Tensor) -> Tensor:
    """Homogeneous matrix [N,3,3] (numbers: [3,3]) that adds (tx, ty)."""
    return matrix([[1, 0, tx], [0, 1, ty], [0, 0, 1]])


def scale2d(sx: float | Tensor, sy: float | Tensor) -> Tensor:
    """Homogeneous matrix [N,3,3] (numbers: [3,3]) that multiplies by (sx, sy)."""
    return matrix([[sx, 0, 0], [0, sy, 0], [0, 0, 1]])


def rotate2d(theta: Tensor) -> Tensor:
    """Homogeneous matrix [N,3,3] of [[cos, -sin], [sin, cos]], theta [N] in radians."""
    cos, sin = torch.cos(theta), torch.sin(theta)
    return matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def rotate_about_luma(theta: Tensor) -> Tensor:
    """Rotation [N,4,4] of (r, g, b, 1) about the gray axis (1,1,1)/sqrt(3), theta [N] in radians (Rodrigues)."""
    cos, sin = torch.cos(theta), torch.sin(theta) / 3**0.5
    a, b, c = (1 + 2 * cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
    return matrix([[a, b, c, 0], [c, a, b, 0], [b, c, a, 0], [0, 0, 0, 1]])


def brighten(b: Tensor) -> Tensor:
    """Colour matrix [N,4,4] that adds b [N]."""
    return matrix([[1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]])


def stretch_contrast(c: Tensor) -> Tensor:
    """Colour matrix [N,4,4] that multiplies by c [N]."""
    return matrix([[c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, 1]])


def flip_luma(i: Tensor) -> Tensor:
    """Colour matrix [N,4,4] that reflects along the gray axis where i [N] is 1, and does nothing where it is 0."""
    eye, luma = _identity_and_luma(i)
    return eye - 2 * luma * i[:, None, None]


def saturate(s: Tensor) -> Tensor:
    """Colour matrix [N,4,4] that multiplies the distance from the gray axis by s [N]."""
    eye, luma = _identity_and_luma(s)
    return luma + (eye - luma) * s[:, None, None]


def _identity_and_luma(like: Tensor) -> tuple[Tensor, Tensor]:
    """The identity and the projection on the gray axis, [4,4] each."""
    axis = torch.tensor([3**-0.5] * 3 + [0.0], dtype=torch.float64).to(like)
    return torch.eye(4).to(like), torch.outer(axis, axis)
