"""A GAN's image discriminator as a critic, on images as they are or noised (Wang et al. 2022, arXiv 2206.02262)."""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.data.augment import AugmentPipe
from stylegan_di.diffusion import NoiseLaw, add_noise
from stylegan_di.interfaces import Critic
from stylegan_di.random import SampleRandom


class DiscriminatorCritic(Critic):
    """D(x) of a GAN.

    Args:
        network: called as network(images, labels) -> logits [B,1] or [B].
        augment_pipe: augmentations of what it is trained on; None: none.
        noise_law: noise levels that it is trained at; None: it sees clean images.
    """

    def __init__(
        self, network: torch.nn.Module, augment_pipe: AugmentPipe | None = None, noise_law: NoiseLaw | None = None
    ) -> None:
        self.network = network
        self.augment_pipe = augment_pipe
        self.noise_law = noise_law

    def logits(
        self, x: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor | None, *, rng: SampleRandom | None = None
    ) -> Tensor:
        """As a Critic; with rng, which holds a stream a sample, images are augmented as in its training.

        Autocast is off: a discriminator has float16 layers of its own.
        """
        with torch.autocast(x.device.type, enabled=False):
            images = x if self.noise_law is None else add_noise(x, noise, sigma)
            if rng is not None and self.augment_pipe is not None:
                images = self.augment_pipe(images, rng=rng)
            logits: Tensor = self.network(images, labels)
            return logits.view(len(x), 1)
