"""Classifier-free guidance of a network of classes (--guidance): Ho & Salimans 2022, arXiv 2207.12598.

With D = D_null + w (D_label - D_null) the score is that of p_null^(1 - w) p_label^w at each noise level, which for w
above 1 is what tells the class from the others. The network must know the null label, by label dropout in its training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser
from stylegan_di.teachers.wrapped import Wrapped


class Guided(Wrapped):
    """D_null + w (D_label - D_null); two evaluations of the denoiser, in one batch.

    Args:
        denoiser: of a network with classes.
        guidance: w; 1 is none.
    """

    guidance: Tensor

    def __init__(self, denoiser: Denoiser, guidance: float) -> None:
        super().__init__(denoiser)
        # A buffer, so that a hash of the weights tells scales apart; float32, as a GPU without float64 can hold it.
        self.register_buffer("guidance", torch.tensor(guidance, dtype=torch.float32))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            return self.denoiser(x, sigma)
        twice = torch.cat([torch.zeros_like(labels), labels])
        denoised = self.denoiser(x.repeat(2, 1, 1, 1), torch.as_tensor(sigma).expand(len(x)).repeat(2), twice)
        null, told = denoised.chunk(2)
        return null + self.guidance * (told - null)
