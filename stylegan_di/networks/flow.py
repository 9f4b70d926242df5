"""A normalizing flow of affine couplings (Dinh et al. 2017, arXiv 1605.08803), whose likelihood is known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import ModuleList
from torch.nn import functional as F

from stylegan_di.networks.edm_layers import Linear, with_labels
from stylegan_di.torch_utils.persistence import PersistentModule


class Coupling(PersistentModule):
    """Leaves half of the numbers as they are, and scales and shifts the others by functions of them and the class."""

    def __init__(self, dim: int, label_dim: int, width: int) -> None:
        super().__init__()
        self.kept = dim // 2
        last = Linear(width, 2 * (dim - self.kept), init_weight=0.01)  # it starts close to the identity
        self.layers = ModuleList([Linear(self.kept + label_dim, width), Linear(width, width), last])

    def forward(self, x: Tensor, labels: Tensor | None, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """x [B,dim] -> (mapped x [B,dim], log of the Jacobian's determinant [B])."""
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        first, second, last = self.layers
        scale, shift = last(F.silu(second(F.silu(first(with_labels(kept, labels)))))).chunk(2, dim=1)
        scale = scale.tanh()
        changed = (changed - shift) * (-scale).exp() if inverse else changed * scale.exp() + shift
        total = scale.sum(dim=1)
        return torch.cat([kept, changed], dim=1), -total if inverse else total


class Flow(PersistentModule):
    """images = f(z) for z as large as an image, with permutations between couplings that are part of the weights.

    Args:
        img_resolution, img_channels, label_dim: of the images and classes.
        depth: couplings.
        width: of their hidden layers.
    """

    orders: Tensor

    def __init__(
        self, img_resolution: int, img_channels: int, label_dim: int, depth: int = 8, width: int = 256
    ) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        dim = img_channels * img_resolution**2
        self.latent_shape = (dim,)
        self.couplings = ModuleList(Coupling(dim, label_dim, width) for _ in range(depth))
        self.log_scale = torch.nn.Parameter(torch.full([dim], math.log(0.5)))  # of images, of deviation 1/2
        self.shift = torch.nn.Parameter(torch.zeros(dim))
        self.register_buffer("orders", torch.stack([torch.randperm(dim) for _ in range(depth)]))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [B,C*H*W], labels [B,label_dim] -> images [B,C,H,W]."""
        x = z
        for order, coupling in zip(self.orders, self.couplings, strict=True):
            x, _ = coupling(x[:, order], labels)
        x = x * self.log_scale.exp() + self.shift
        return x.unflatten(1, (self.img_channels, self.img_resolution, self.img_resolution))

    def check(self) -> None:
        """Raises ValueError unless the permutations are some."""
        numbers = torch.arange(self.orders.shape[1], device=self.orders.device)
        if not bool((self.orders.sort(dim=1).values == numbers).all()):
            raise ValueError("orders that are no permutations")

    def log_likelihood(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The log density [B], in nats, of images [B,C,H,W] in [-1,1] by the change of variables."""
        x = (images.flatten(1) - self.shift) * (-self.log_scale).exp()
        total = -self.log_scale.sum().expand(len(x))
        for order, coupling in zip(reversed(self.orders), reversed(self.couplings), strict=True):
            x, log_det = coupling(x, labels, inverse=True)
            x = torch.empty_like(x).index_copy(1, order, x)
            total = total + log_det
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(dim=1)
