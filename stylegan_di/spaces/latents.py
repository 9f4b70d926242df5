"""An autoencoder's latents: where teachers of latent diffusion work (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stylegan_di.interfaces import Space

CHUNK = 4  # images at a time: an encoder's activations at full resolution are far larger than its latents


class Latents(Space):
    """x = (E(images) - shift) * scale, with E the mean of the latents' posterior, each channel by its own numbers.

    Gradients run back through the encoder, whose activations are computed again for them, CHUNK images at a time, so
    that memory does not grow with the batch.

    Args:
        encoder: E, a module; frozen here, and moved to the images' device where it is first called.
        resolution, channels: of the latents.
        shift, scale: a number for all channels, or one for each.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        resolution: int,
        channels: int,
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.resolution = resolution
        self.channels = channels
        self.shift = torch.as_tensor(shift, dtype=torch.float64).reshape(-1, 1, 1)
        self.scale = torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        self.encoder.to(images.device)
        parts = [self._encode(part) for part in images.split(CHUNK)]
        means = torch.cat(parts)
        return (means - self.shift.to(means)) * self.scale.to(means)

    def _encode(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return checkpoint(self.encoder, images, use_reentrant=False, preserve_rng_state=False)
        return self.encoder(images)
