"""Convolutions of frozen filters on a CPU with fewer products: Winograd's F(4x4, 3x3) (Lavin & Gray, arXiv 1509.09308).

Sixteen results of a 3x3 convolution take 36 products a pair of channels instead of 144. With a tile d [6,6] of the
image and a filter g [3,3] they are

    y = A^T [sum over channels of (G g G^T) * (B^T d B)] A,    * by elements,

so that each of the 36 places is a matrix product over channels. G g G^T is computed once, in float64, and takes four
times the filter's memory. A 1x1 convolution is a matrix product as it is. Products are oneDNN's, which on some
processors are more than twice as fast as those of `torch.mm`. The results differ from those of a convolution in
float64 by 3e-6 of their norm; PyTorch's own differ by 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

TILE = 4  # results along an edge
PLACES = (TILE + 2) ** 2
MIN_CHANNELS = 192  # with fewer, the transforms cost what the products save
MIN_SIZE = 16  # pixels along an edge
#: Whether PyTorch has oneDNN's products as an operator, which is not a public one.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

_B = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                   [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64)  # fmt: skip
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
_A = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
                  dtype=torch.float64)  # fmt: skip
OF_IMAGES, OF_FILTERS, OF_RESULTS = (torch.kron(matrix, matrix) for matrix in (_B, _G, _A))


@dataclass(frozen=True)
class Prepared:
    """A filter that is ready: `factors` [36,out,in] of a 3x3 convolution, [1,out,in] of a 1x1."""

    factors: Tensor
    version: int  # of the filter, to notice that it has changed

    def fits(self, x: Tensor) -> bool:
        size, step = (MIN_SIZE, TILE) if len(self.factors) == PLACES else (1, 1)
        return all(edge >= size and edge % step == 0 for edge in x.shape[2:])

    def convolve(self, x: Tensor, gain: float, bias: Tensor | None) -> Tensor:
        """Returns gain * convolution + bias, of x [N,C,H,W], padded so that it keeps its size; channels_last."""
        y = self._tiled(x) if len(self.factors) == PLACES else self._product(x)
        if gain != 1:
            y.mul_(gain)
        return (y if bias is None else y.add_(bias)).permute(0, 3, 1, 2)

    def _product(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return product(pixels.reshape(-1, x.shape[1]), self.factors[0]).reshape(*pixels.shape[:3], -1)

    def _tiled(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        rows, columns = height // TILE, width // TILE
        edge = TILE + 2
        padded = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1).contiguous()
        image, line, pixel, _ = padded.stride()
        tiles = padded.as_strided(
            [edge, edge, n, rows, columns, channels], [line, pixel, image, TILE * line, TILE * pixel, 1]
        )
        transformed = torch.mm(OF_IMAGES.to(x.dtype), tiles.reshape(PLACES, -1)).view(PLACES, -1, channels)
        products = torch.stack([product(part, u) for part, u in zip(transformed, self.factors, strict=True)])
        results = torch.mm(OF_RESULTS.to(x.dtype), products.view(PLACES, -1))
        places = results.view(TILE, TILE, n, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        return places.reshape(n, height, width, -1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [n,in] @ weight [out,in]^T -> [n,out]."""
    if x.dtype == torch.float32 and ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


_PREPARED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepare(filters: Iterable[Tensor]) -> int:
    """Makes filters [out,in,k,k] ready that will not change, those of 3x3 and 1x1 on a CPU; returns how many.

    Layers use them by `prepared` where no gradient is wanted. A filter that has changed since is not used.
    """
    count = 0
    for weight in filters:
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        flat = weight.detach().permute(2, 3, 0, 1).flatten(0, 1)  # [k * k, out, in]
        if tuple(weight.shape[2:]) == (3, 3) and min(weight.shape[:2]) >= MIN_CHANNELS:
            flat = (OF_FILTERS @ flat.double().flatten(1)).float().view(PLACES, *weight.shape[:2])
        elif tuple(weight.shape[2:]) != (1, 1):
            continue
        _PREPARED[weight] = Prepared(flat.contiguous(), weight._version)
        count += 1
    return count


def prepared(weight: Tensor, x: Tensor) -> Prepared | None:
    """The filter `weight`, where `prepare` has made it ready and it can be used for x [N,C,H,W]."""
    if torch.compiler.is_compiling() or len(_PREPARED) == 0 or torch.is_grad_enabled():
        return None
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    found = _PREPARED.get(weight)
    return found if found is not None and found.version == weight._version and found.fits(x) else None
