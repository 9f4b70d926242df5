"""DINOv2's ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193), as a feature extractor.

Frechet distances in its features agree better with people than in Inception's (Stein et al. 2023, arXiv 2306.04675).

It is a vision transformer (arXiv 2010.11929) on patches of 14 pixels, whose residual branches are scaled by learned
factors (arXiv 2103.17239). Images are resized to 224 pixels; the position embeddings, learned for 518, are interpolated
as the authors do. Weights have the names and shapes of the authors' file, which is not downloaded (1.2 GB): the user
gives it as dinov2=FILE.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_di.dnnlib.untrusted import open_untrusted, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.vgg16 import normalise

RESOLUTION = 224
PATCH = 14
TRAINED = 518 // PATCH  # patches per side for which the position embeddings were learned
OFFSET = 0.1  # what the authors add to the new number of patches per side when they interpolate
WEIGHTS_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


class DinoV2(FeatureExtractor):
    """Turns images into the class token after the last of `depth` blocks, normalised; `dim` is the tokens' width."""

    name = "dinov2"

    def __init__(self, dim: int = 1024, depth: int = 24, heads: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED**2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # used in training only, but part of the file
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, PATCH, stride=PATCH)})
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W], resized to 224x224 (bicubic, antialiased) -> features float32 [B,1024]."""
        x = images.to(self.cls_token.dtype)
        if x.shape[2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, size=[RESOLUTION, RESOLUTION], mode="bicubic", antialias=True)
        x = self.patch_embed["proj"](normalise(x)).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions()
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0]).float()

    def positions(self) -> Tensor:
        """Position embeddings [1,1+16*16,dim] for 224 pixels."""
        token, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = grid.mT.reshape(1, self.dim, TRAINED, TRAINED)
        scale = (RESOLUTION // PATCH + OFFSET) / TRAINED
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([token, grid.flatten(2).mT], dim=1)


class Block(nn.Module):
    """Attention, then a hidden layer: each normalises its input, and its scaled output is added to that input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.ls1 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(dim))})
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.ls2 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(dim))})

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B,N,dim] -> [B,N,dim]."""
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def load_dinov2(path: str | os.PathLike[str] | None = None) -> DinoV2:
    """The network with the weights of the authors' file dinov2_vitl14_pretrain.pth.

    Raises:
        UserError: if no file is given, or it does not hold these weights.
    """
    if path is None:
        raise UserError(f"DINOv2 needs --detector-file=dinov2=FILE, a local copy of {WEIGHTS_URL} (1.2 GB)")
    remedy = f"These are not the weights of DINOv2's ViT-L/14, which are published at {WEIGHTS_URL}."
    with untrusted(os.fspath(path), remedy=remedy), open_untrusted(path) as (file, _):
        return dinov2_of(torch.load(file, map_location="cpu", weights_only=True))


def dinov2_of(weights: Mapping[str, Tensor], *, heads: int = 16) -> DinoV2:
    """The network with these weights, in evaluation mode, without gradients."""
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
    return DinoV2.of_weights(weights, dim=weights["cls_token"].shape[-1], depth=depth, heads=heads)
