"""An autoencoder's latents: where teachers of latent diffusion work (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stylegan_di.interfaces import Space

#: Pixels at a time, as four images of 512x512 have: activations at full resolution are far larger than latents.
CHUNK = 4 * 512**2


def at_a_time(side: int) -> int:
    """How many images of a side pass an encoder together."""
    return max(1, CHUNK // side**2)


class Latents(Space):
    """x = (E(images) - shift) * scale, with E the mean of the latents' posterior, each channel by its own numbers.

    Gradients run back through the encoder, whose activations are computed again for them, CHUNK pixels at a time, so
    that memory does not grow with the batch.

    Args:
        encoder: E, a module; frozen here, and moved to the images' device where it is first called.
        resolution, channels: of the latents.
        shift, scale: a number for all channels, or one for each.
        decoder: from E's latents to images; treated as the encoder is. None where no images are wanted.
        images: resolution and channels of the images, if there is a decoder.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        resolution: int,
        channels: int,
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
        decoder: torch.nn.Module | None = None,
        images: tuple[int, int] | None = None,
    ) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.decoder = None if decoder is None else decoder.eval().requires_grad_(False)
        self.resolution = resolution
        self.channels = channels
        self.images = images
        self.shift = torch.as_tensor(shift, dtype=torch.float64).reshape(-1, 1, 1)
        self.scale = torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1, 1)
        self._numbers: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def encode(self, images: Tensor) -> Tensor:
        self.encoder.to(images.device)
        means = torch.cat([self._encode(part) for part in images.split(at_a_time(images.shape[-1]))])
        shift, scale = self._moved(means)
        return (means - shift) * scale

    def decode(self, x: Tensor) -> Tensor:
        assert self.decoder is not None
        assert self.images is not None
        self.decoder.to(x.device)
        shift, scale = self._moved(x)
        return torch.cat([self.decoder(part) for part in (x / scale + shift).split(at_a_time(self.images[0]))])

    def _moved(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, moved to a tensor's device once: a CUDA graph can hold no copy from the CPU."""
        key = like.device, like.dtype
        if key not in self._numbers:
            self._numbers[key] = self.shift.to(like), self.scale.to(like)
        return self._numbers[key]

    def _encode(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return checkpoint(self.encoder, images, use_reentrant=False, preserve_rng_state=False)
        return self.encoder(images)
