"""A radiance field for each class, seen by cameras around it: NeRF's rendering (Mildenhall et al. 2020, 2003.08934)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan_di.networks.edm_layers import Linear, with_labels
from stylegan_di.torch_utils.persistence import PersistentModule

OCTAVES = 4  # of the positions' Fourier features
MAX_POINTS = 1 << 24  # of all rays; they take 12 bytes each


class RadianceField(PersistentModule):
    """Density and colour of each point in the cube [-1,1]^3, rendered orthographically on black.

    A latent is a camera: one number, which the normal distribution's function turns into an angle around the vertical
    axis, uniform within `angle` to either side. Depth is sampled evenly.

    Args:
        img_resolution, img_channels, label_dim: of the images and classes; each class is an object of its own.
        width: of the field's hidden layers.
        depth: samples along a ray.
        angle: largest angle of a camera, in degrees; 0: all look from the front.

    Raises:
        ValueError: if there are more than MAX_POINTS samples.
    """

    positions: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        width: int = 64,
        depth: int = 16,
        angle: float = 30.0,
    ) -> None:
        if img_resolution**2 * depth > MAX_POINTS:
            raise ValueError(f"{depth} samples on each of {img_resolution}^2 rays; accepted are {MAX_POINTS} in all")
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.latent_shape = (1,)
        self.angle = math.radians(angle)
        self.layers = torch.nn.ModuleList(
            [Linear(3 + 6 * OCTAVES + label_dim, width), Linear(width, width), Linear(width, 1 + img_channels)]
        )
        across = (torch.arange(img_resolution) + 0.5) / img_resolution * 2 - 1
        along = (torch.arange(depth) + 0.5) / depth * 2 - 1
        y, x, z = torch.meshgrid(across, across, along, indexing="ij")
        self.register_buffer("positions", torch.stack([x, y, z], dim=-1), persistent=False)  # [H,W,depth,3]

    def field(self, points: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Density per length [B,n] >= 0 and colour [B,n,C] in [0,1] at points [B,n,3]; labels [B,label_dim]."""
        octaves = 2.0 ** torch.arange(OCTAVES, device=points.device, dtype=points.dtype) * math.pi / 2
        waves = (points[..., None] * octaves).flatten(2)
        seen = torch.cat([points, waves.sin(), waves.cos()], dim=2)
        told = None if labels is None else labels[:, None].expand(-1, points.shape[1], -1)
        first, second, last = self.layers
        out = last(F.silu(second(F.silu(first(with_labels(seen, told))))))
        return F.softplus(out[..., 0]), out[..., 1:].sigmoid()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [B,1], labels [B,label_dim] -> renders [B,C,H,W] in [-1,1]."""
        angles = self.angle * torch.erf(z[:, 0] / math.sqrt(2))
        sin, cos, zero, one = angles.sin(), angles.cos(), torch.zeros_like(angles), torch.ones_like(angles)
        rows = [[cos, zero, sin], [zero, one, zero], [-sin, zero, cos]]  # around the vertical axis
        turn = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        height, width, depth, _ = self.positions.shape
        points = self.positions.reshape(1, -1, 3).to(z) @ turn.transpose(1, 2)
        density, colour = self.field(points, labels)
        density = density.reshape(-1, height, width, depth) * (2 / depth)
        passing = (-torch.cat([torch.zeros_like(density[..., :1]), density], dim=3).cumsum(dim=3)).exp()
        weights = passing[..., :-1] - passing[..., 1:]  # light that is stopped in each interval
        rendered = (weights[..., None] * colour.reshape(-1, height, width, depth, self.img_channels)).sum(dim=3)
        return rendered.permute(0, 3, 1, 2) * 2 - 1
