"""A GAN followed by one run of the teacher's network: images = D(G(z) + sigma_init n; sigma_init), n standard normal.

The GAN decides what an image shows, the denoiser how it looks: latents keep their meaning, and the U-Net has the detail
that a small synthesis network lacks. Both are trained by the same method (--student=refiner), or the denoiser alone
(--freeze=generator). The idea is SDEdit's (arXiv 2108.01073), in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.labels import Chosen
from stylegan_di.networks.refiner import Refiner, RefinerOfW
from stylegan_di.random import SampleRandom
from stylegan_di.students.one_step import network_of_teacher
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.students.stylegan3 import gan_student
from stylegan_di.torch_utils.precision import at_least_float32

PARTS = ("generator", "denoiser")
SIGMA_INIT = 1.0  # the noise level unless one is given


class RefinerStudent(Generator):
    """A `Refiner` as a student. Its latents are the GAN's; the noise is per-pixel noise inside.

    Args:
        network: kept as `.network`.
        trunc, noise_mode, trunc_mode: as for the GAN. Noise 'const' is the file's own for all images, 'none' is none.
    """

    kind = "refiner"
    options = StyleGAN2Student.options
    parts = PARTS
    label_in_w: ClassVar[bool] = False
    network: Refiner
    starts_as_gan = False  # whether the denoiser in it is a teacher's, which has not been trained here

    def __init__(
        self, network: Refiner, *, trunc: float = 1, noise_mode: str = "const", trunc_mode: str = "mean"
    ) -> None:
        super().__init__()
        self.network = network
        self.training = False
        options = {"trunc": trunc, "noise_mode": noise_mode, "trunc_mode": trunc_mode}
        gan: StyleGAN2Student = gan_student(network.generator)
        gan = gan.with_options(**{name: value for name, value in options.items() if name in gan.options})
        self.noise_mode = noise_mode
        self._gan = (gan,)  # a tuple, so that it is not registered twice
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.label_dim

    @property
    def gan(self) -> StyleGAN2Student:
        """The GAN in it, with the same labels."""
        (gan,) = self._gan
        gan.known_labels = self.known_labels
        return gan

    @property
    def latent_kind(self) -> str:
        return self.gan.latent_kind

    @classmethod
    def of(cls, gan: Generator, teacher: Denoiser, sigma_init: float) -> RefinerStudent:
        """A refiner that starts as a GAN and a copy of the teacher's network.

        Raises:
            UserError: if the two cannot be joined.
        """
        if isinstance(gan, RefinerStudent):
            if sigma_init not in (SIGMA_INIT, gan.network.sigma_init):
                raise UserError(
                    f"--sigma-init={sigma_init:g}: --gan-pkl is a refiner already, which adds noise of level "
                    f"{gan.network.sigma_init:g}: leave it out"
                )
            return cls(gan.network)
        if not isinstance(gan, StyleGAN2Student):
            raise UserError(f"--student=refiner wants a StyleGAN2 or StyleGAN3 as --gan-pkl, and this is a {gan.kind}")
        refused = "cannot be put behind a GAN, as --student=refiner does; leave that out, or choose another teacher"
        network = network_of_teacher(teacher, refused)
        try:
            made = cls(Refiner.of(gan.network, network, sigma_init)).eval()
        except ValueError as error:
            raise UserError(
                f"--student=refiner: teacher and GAN do not match: {error}; choose a teacher of the GAN's images and "
                "classes, or leave it out"
            ) from None
        made.starts_as_gan = True
        return made

    @property
    def origin(self) -> Generator:
        return self.gan if self.starts_as_gan else self

    def _with(self, **options: Any) -> RefinerStudent:
        own: dict[str, Any] = {"trunc": self.gan.trunc, "trunc_mode": self.gan.trunc_mode}
        return RefinerStudent(self.network, **(own | {"noise_mode": self.noise_mode} | options))

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """The GAN's latents [n, z_dim]."""
        return self.gan.sample_latents(n, rng=rng)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,z_dim]; labels [B,label_dim] one-hot; rng: of all noise, None for the fixed noise."""
        images = self.gan(z, labels, rng=rng)
        return self._refined(images, labels, None if rng is None else rng.normal(*images.shape[1:]))

    def _refined(self, images: Tensor, labels: Tensor | None, noise: Tensor | None) -> Tensor:
        """Images [B,C,H,W] -> refined ones; noise [B,C,H,W], None for that of `noise_mode` without a source."""
        if noise is None:
            noise = self.network.noise_const * (self.noise_mode != "none")
        return at_least_float32(self.network.refine(images, noise.to(images), labels))

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        """As the GAN draws, then refined, by noise keyed by seed in noise_mode 'random'."""
        gan, device = self.gan, next(self.parameters()).device
        noise = None
        if self.noise_mode == "random":
            shape = (self.img_channels, self.img_resolution, self.img_resolution)
            noise = torch.cat([SampleRandom(seed, "refiner", 0, [0], device).normal(*shape) for seed in seeds])
        _, labels = gan.latents_of(seeds, class_index=class_index)
        return self._refined(gan.draw(seeds, class_index=class_index), labels, noise)

    def of_w(self, labels: Tensor | None) -> RefinerOfW:
        """The network whose `synthesis` makes images of the GAN's w, with labels [1,label_dim]."""
        return RefinerOfW(self.network, labels)

    # In a training.

    def freeze(self, parts: Sequence[str]) -> None:
        """A frozen generator is a GAN of which all parts are frozen."""
        self.gan.frozen = self.gan.parts if "generator" in parts else ()
        super().freeze(parts)

    def train(self, mode: bool = True) -> RefinerStudent:
        """The denoiser stays in evaluation mode, without dropout."""
        super().train(mode)
        self.gan.train(mode and "generator" not in self.frozen)
        self.network.denoiser.eval()
        return self

    def running_means(self) -> list[Tensor]:
        return self.gan.running_means()

    def settle(self, rng: SampleRandom) -> None:
        """The GAN's w_avg, see `StyleGAN2Student.settle`."""
        self.gan.settle(rng)

    def compile_network(self) -> None:
        self.network.denoiser.compile()

    # On disk.

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> RefinerStudent | None:
        return cls(network) if isinstance(network, Refiner) else None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        return {"refiner": self.network}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"training_set_kwargs": dict(data)}
