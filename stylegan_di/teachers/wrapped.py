"""A denoiser around another, which is asked where the wrapper says nothing itself."""

from __future__ import annotations

from torch import Tensor

from stylegan_di.interfaces import Denoiser


class Wrapped(Denoiser):
    """Passes everything on to `denoiser`; a subclass says in `forward` what it changes.

    A fake score starts from the denoiser itself: what is wrapped around a teacher is not the student's.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.training = denoiser.training
        for name in ("img_resolution", "img_channels", "label_dim", "known_labels", "sigma_min", "sigma_max", "space"):
            setattr(self, name, getattr(denoiser, name))
        self.img_width = denoiser.img_width

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.denoiser.round_sigma(sigma)

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return self.denoiser.features(x, sigma, labels)

    def trainable_copy(self) -> Denoiser:
        return self.denoiser.trainable_copy()

    def adapted_copy(self, rank: int) -> Denoiser:
        return self.denoiser.adapted_copy(rank)

    def compile_network(self) -> None:
        self.denoiser.compile_network()
