"""Generators around trained networks: what is refined, distilled, measured and shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.networks import stylegan2
from stylegan_di.networks.edm import Precond
from stylegan_di.random import SampleRandom


class StyleGAN2Student(Generator):
    """A StyleGAN2 generator: images = synthesis(mapping(z, labels)) (Karras et al. 2020, arXiv 1912.04958).

    Args:
        network: NVlabs' Generator, kept as `.network`.
        truncation_psi: 1 for none, 0 for the mean image; below 1, samples are less diverse.
    """

    network: stylegan2.Generator

    def __init__(self, network: stylegan2.Generator, truncation_psi: float = 1) -> None:
        super().__init__()
        self.network = network
        self.truncation_psi = truncation_psi
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.c_dim
        self.frozen: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """What can be frozen: 'mapping' and the blocks 'b4', 'b8', ... of the synthesis network."""
        return ["mapping", *(f"b{resolution}" for resolution in self.network.synthesis.block_resolutions)]

    def freeze(self, parts: Sequence[str]) -> None:
        """Keeps parts (see `parts`) as they are in every training from now on; a frozen mapping keeps its w_avg too."""
        self.frozen = tuple(parts)
        self.train(self.training)
        self.requires_grad_(any(parameter.requires_grad for parameter in self.parameters()))

    def frozen_modules(self) -> list[torch.nn.Module]:
        """The networks behind the names of the frozen parts."""
        synthesis = self.network.synthesis
        return [self.network.mapping if part == "mapping" else synthesis.get_submodule(part) for part in self.frozen]

    def train(self, mode: bool = True) -> StyleGAN2Student:
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> StyleGAN2Student:
        """Frozen parts take no gradients."""
        super().requires_grad_(requires_grad)
        for module in self.frozen_modules():
            module.requires_grad_(False)
        return self

    @torch.no_grad()
    def estimate_w_avg(self, rng: SampleRandom) -> None:
        """Sets w_avg, the w that truncation draws towards, to the mean over the streams of rng, labels drawn evenly.

        A frozen mapping network and one that keeps no mean are left alone.
        """
        mapping = self.network.mapping
        if "mapping" in self.frozen or mapping.w_avg_beta is None:
            return
        labels = None
        if self.label_dim:
            labels = torch.nn.functional.one_hot(rng.integers(self.label_dim), self.label_dim).float()
        ws = mapping(self.sample_latents(len(rng), rng=rng), labels, skip_w_avg_update=True)
        mapping.w_avg.copy_(ws[:, 0].mean(0))

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n, z_dim]."""
        _check_streams(n, rng)
        return rng.normal(self.network.z_dim)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,z_dim]; labels [B,label_dim] one-hot; rng: of the per-pixel noise, None for the fixed noise_const.

        Raises:
            UserError: if labels are missing or given against the network's nature.
        """
        labels = _checked_labels(labels, self.label_dim, len(z))
        psi = self.truncation_psi
        if rng is None:
            images = self.network(z, labels, truncation_psi=psi, noise_mode="const")
        else:
            noise = {"noise_mode": "random", "noise_source": lambda *shape: rng.normal(*shape)}
            images = self.network(z, labels, truncation_psi=psi, **noise)
        return _at_least_float32(images)


class OneStepStudent(Generator):
    """A denoising network run once: images = D(sigma_init * z; sigma_init), z standard normal (arXiv 2305.18455, 3.3).

    Args:
        network: a preconditioned network, kept as `.network`.
        sigma_init: the noise level at which it is run, > 0.
    """

    network: Precond

    def __init__(self, network: Precond, sigma_init: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_init = float(sigma_init)
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim

    def train(self, mode: bool = True) -> OneStepStudent:
        """Stays in evaluation mode: dropout is for training denoisers; here an image is a function of its latent."""
        return super().train(False)

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n,C,H,W]."""
        _check_streams(n, rng)
        return rng.normal(self.img_channels, self.img_resolution, self.img_resolution)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,C,H,W]; labels [B,label_dim] one-hot, None the null label; rng is not needed: nothing else is random."""
        sigma = torch.full([z.shape[0]], self.sigma_init, dtype=z.dtype, device=z.device)
        return _at_least_float32(self.network(self.sigma_init * z, sigma, labels))


def _check_streams(n: int, rng: SampleRandom) -> None:
    if len(rng) != n:
        raise ValueError(f"{n} latents from {len(rng)} random streams; one stream a sample is needed")


def _checked_labels(labels: Tensor | None, label_dim: int, count: int) -> Tensor | None:
    if label_dim == 0:
        return None
    if labels is None:
        raise UserError(f"this generator is conditional on {label_dim} classes: labels (--class) are needed")
    if tuple(labels.shape) != (count, label_dim):
        raise UserError(f"labels of shape {list(labels.shape)}; this generator wants [{count}, {label_dim}], one-hot")
    return labels


def _at_least_float32(images: Tensor) -> Tensor:
    return images if images.dtype == torch.float64 else images.float()
