"""A GAN with one denoising step behind it, as one network: images = D(G(z) + sigma n; sigma)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan_di.networks import edm2, stylegan2, stylegan3
from stylegan_di.networks.edm import PRECONDITIONERS, DDPMPrecond, Precond
from stylegan_di.torch_utils.persistence import PersistentModule

#: By the names that a file gives them.
GENERATORS: dict[str, type[PersistentModule]] = {
    "Generator": stylegan2.Generator,
    "stylegan3.Generator": stylegan3.Generator,
}
DENOISERS: dict[str, type[Precond]] = {
    cls.__name__: cls for cls in (*PRECONDITIONERS.values(), DDPMPrecond, edm2.Precond)
}


class Refiner(PersistentModule):
    """A generator and a denoiser of the same images; see `students.refiner`.

    Args:
        img_resolution, img_channels, label_dim: of the images and of both networks.
        sigma_init: the noise level of the denoising step, > 0.
        generator, denoiser: each a class's name as 'class_name' and its keyword arguments.

    Raises:
        ValueError: if a class is unknown, or the two networks make other images.
    """

    noise_const: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        sigma_init: float,
        generator: dict[str, Any],
        denoiser: dict[str, Any],
    ) -> None:
        super().__init__()
        if not 0 < sigma_init < 1e9:
            raise ValueError(f"sigma_init={sigma_init} is no noise level")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_init = float(sigma_init)
        self.generator = _build(GENERATORS, **generator)
        self.denoiser = _build(DENOISERS, **denoiser)
        shape = (img_resolution, img_channels, label_dim)
        for network in (self.generator, self.denoiser):
            classes = getattr(network, "c_dim", None) if network is self.generator else network.label_dim
            width = getattr(network, "img_width", None)
            if (network.img_resolution, network.img_channels, classes) != shape or width is not None:
                raise ValueError(
                    f"a {type(network).__name__} of other images or classes than {img_resolution}x{img_resolution}, "
                    f"{img_channels} channels, {label_dim} classes"
                )
        self.register_buffer("noise_const", torch.randn(img_channels, img_resolution, img_resolution))

    @classmethod
    def of(cls, generator: PersistentModule, denoiser: Precond, sigma_init: float) -> Refiner:
        """Makes one of two networks, whose weights it takes over.

        Raises:
            ValueError: see the class.
        """
        names = {cls: name for name, cls in (GENERATORS | DENOISERS).items()}
        parts = [{"class_name": names[type(part)], **part.init_kwargs} for part in (generator, denoiser)]
        shape = (denoiser.img_resolution, denoiser.img_channels, denoiser.label_dim)
        made = cls(*shape, sigma_init=sigma_init, generator=parts[0], denoiser=parts[1])
        made.generator.load_state_dict(generator.state_dict())
        made.denoiser.load_state_dict(denoiser.state_dict())
        return made

    def refine(self, images: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Denoises images [B,C,H,W] to which sigma_init * noise [B,C,H,W] or [C,H,W] is added; labels [B,label_dim]."""
        sigma = torch.full([images.shape[0]], self.sigma_init, dtype=images.dtype, device=images.device)
        return self.denoiser(images + self.sigma_init * noise, sigma, labels)


class RefinerOfW(torch.nn.Module):
    """A refiner as a StyleGAN's network is called on its w, with its weights: `mapping` and `synthesis`.

    labels: [1,label_dim] of all images, None for the null label.
    """

    def __init__(self, refiner: Refiner, labels: Tensor | None) -> None:
        super().__init__()
        generator: Any = refiner.generator
        self.z_dim, self.w_dim, self.num_ws = generator.z_dim, generator.w_dim, generator.num_ws
        self.mapping: torch.nn.Module = generator.mapping
        self.synthesis = _Synthesis(refiner, labels)


class _Synthesis(torch.nn.Module):
    def __init__(self, refiner: Refiner, labels: Tensor | None) -> None:
        super().__init__()
        self.generator: torch.nn.Module = refiner.generator.synthesis
        self.refine, self.noise, self.labels = refiner.refine, refiner.noise_const, labels

    def forward(self, ws: Tensor, **options: Any) -> Tensor:
        """ws [B,num_ws,w_dim] -> images [B,C,H,W], with the refiner's fixed noise; options of the GAN's synthesis."""
        labels = None if self.labels is None else self.labels.expand(len(ws), -1)
        return self.refine(self.generator(ws, **options), self.noise, labels)


def _build(table: dict[str, Any], class_name: str, **kwargs: Any) -> Any:
    if class_name not in table:
        raise ValueError(f"a {class_name[:40]!r}; accepted are {', '.join(table)}")
    return table[class_name](**kwargs)
