"""A network of EDM's form (Karras et al. 2022, arXiv 2206.00364; EDM2: arXiv 2312.02696) as a Denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser
from stylegan_di.networks.edm import Precond
from stylegan_di.teachers.adapters import Adapted, adapt_edm_layers, sharing_copy


class EDMTeacher(Denoiser):
    """An EDM network as a Denoiser.

    `labels=None` on a conditional network is the null label (zeros). Inputs are cast to the network's precision.

    Args:
        network: a preconditioned network, kept as `.network`.
    """

    def __init__(self, network: Precond) -> None:
        super().__init__()
        self.how: dict[str, bool] = {}  # arguments of each pass of the network
        self.network = network
        self.training = network.training
        self.img_resolution, self.img_width = network.img_resolution, network.img_width
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim
        self.sigma_min = network.sigma_min
        self.sigma_max = network.sigma_max
        self.latents = network.latents

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, *, augment_labels: Tensor | None = None
    ) -> Tensor:
        """As a Denoiser; augment_labels [B,9] tell a network trained with EDM's augmentation what was done to x."""
        if augment_labels is None:
            return self.network(x, sigma, labels, **self.how)
        return self.network(x, sigma, labels, augment_labels=augment_labels, **self.how)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.network.round_sigma(sigma)

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return self.network.features(x, sigma, labels, **self.how)

    def checkpoint_activations(self) -> None:
        self.how = {"recompute": True}

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> EDMTeacher | None:
        """A network with `sigma_init` beside it is a one-step student."""
        return cls(network) if isinstance(network, Precond) and extras.get("sigma_init") is None else None

    def entries(self) -> dict[str, torch.nn.Module]:
        return {"ema": self.network}

    def adapted_copy(self, rank: int) -> Denoiser:
        copied = sharing_copy(self)
        adapt_edm_layers(copied.network, rank)
        return Adapted(copied)

    def compile_network(self) -> None:
        self.network.compile()
