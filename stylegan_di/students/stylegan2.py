"""StyleGAN2's generator as a student (Karras et al. 2020, arXiv 1912.04958): a GAN to be refined, shown or measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Generator
from stylegan_di.labels import Chosen
from stylegan_di.networks import stylegan2
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.seeded import call_size, numpy_latents, uint8_images
from stylegan_di.torch_utils.precision import at_least_float32, moved

W_AVG_SAMPLES = 4096  # latents for the mean of a snapshot's w_avg, or of a class's w


def part_names(resolutions: Iterable[int]) -> list[str]:
    """What can be frozen of a StyleGAN2 whose synthesis has blocks of these resolutions."""
    return ["mapping", *(f"b{resolution}" for resolution in resolutions)]


class StyleGAN2Student(Generator):
    """images = synthesis(mapping(z, labels)).

    Args:
        network: NVlabs' Generator, kept as `.network`.
        trunc: truncation psi; 1 for none, 0 for the mean image; below 1, samples are less diverse.
        noise_mode: of the noise inputs where no rng is given: 'const', 'none', or 'random' in `draw`, keyed by seed.
        trunc_mode: what truncation draws towards: the 'mean' of all w, or that of the sample's 'class'.
    """

    kind = "StyleGAN2"
    options: ClassVar[Sequence[str]] = ("trunc", "trunc_mode", "noise_mode")
    #: The steps of a GAN's training whose samples move the running means.
    means_move_with: ClassVar[Sequence[str]] = ("generator", "path_length")
    label_in_w: ClassVar[bool] = True  # else images of w want the label beside it
    network: stylegan2.Generator

    def __init__(
        self, network: stylegan2.Generator, *, trunc: float = 1, noise_mode: str = "const", trunc_mode: str = "mean"
    ) -> None:
        super().__init__()
        if not math.isfinite(trunc):
            raise UserError(f"--trunc={trunc}: accepted are finite numbers")
        if trunc_mode == "class" and (trunc == 1 or not network.c_dim):
            why = "needs --trunc, such as 0.7" if network.c_dim else "is for networks with classes: leave it out"
            raise UserError(f"--trunc-mode=class {why}")
        self.network = network
        self.training = network.training
        self.trunc, self.trunc_mode = trunc, trunc_mode
        self._class_means: dict[bytes, Tensor] = {}  # w [w_dim] by label
        self.noise_mode = noise_mode
        self.num_ws = network.num_ws
        self.img_resolution = network.img_resolution
        self.img_channels = network.img_channels
        self.label_dim = network.c_dim
        self.parts = self.part_names()

    def _with(self, **options: Any) -> StyleGAN2Student:
        own: dict[str, Any] = {"trunc": self.trunc, "noise_mode": self.noise_mode, "trunc_mode": self.trunc_mode}
        return StyleGAN2Student(self.network, **(own | options))

    @property
    def effective_options(self) -> Sequence[str]:
        """Truncation counts where there is a mean of w, and the noise mode where there are noise inputs."""
        has_noise = any(name.endswith("noise_const") for name, _ in self.network.named_buffers())
        has = {"trunc": self.network.mapping.w_avg_beta is not None, "noise_mode": has_noise}
        return [name for name in self.options if has.get(name, True)]

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        """Standard normal latents [n, z_dim]."""
        return rng.of(n).normal(self.network.z_dim)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,z_dim]; labels [B,label_dim] one-hot; rng: of the per-pixel noise, None for the fixed noise_const.

        Raises:
            UserError: if labels are missing or given against the network's nature.
        """
        labels = checked_labels(labels, self.label_dim, z.shape[0])  # len(z) would fix an ONNX batch
        if rng is None:
            noise: dict[str, Any] = {"noise_mode": "none" if self.noise_mode == "none" else "const"}
        else:
            noise = {"noise_mode": "random", "noise_source": lambda *shape: rng.normal(*shape)}
        if self.trunc_mode == "class":
            images = self.network.synthesis(self.truncated(z, labels), **noise)
        else:
            images = self.network(z, labels, truncation_psi=self.trunc, **noise)
        return at_least_float32(images)

    # In a training.

    def part_names(self) -> Sequence[str]:
        """The names of the parts that can be frozen."""
        return part_names(self.network.synthesis.block_resolutions)

    def part(self, name: str) -> torch.nn.Module:
        return self.network.mapping if name == "mapping" else self.network.synthesis.get_submodule(name)

    def running_means(self) -> list[Tensor]:
        return [buffer for name, buffer in self.named_buffers() if name.endswith("w_avg")]

    def mapped_in_training(self, z: Tensor, labels: Tensor | None, *, moves: bool) -> Tensor:
        """ws [B,num_ws,w_dim] of z and labels; whether w_avg moves too, in train mode."""
        return self.network.mapping(z, labels, skip_w_avg_update=not moves)

    def synthesized_in_training(self, ws: Tensor, rng: SampleRandom, *, moves: bool) -> Tensor:
        """Images [B,C,H,W] of ws with noise of rng; whether other running means move too, of which this has none."""
        return self.network.synthesis(ws, noise_mode="random", noise_source=rng.normal)

    @torch.no_grad()
    def settle(self, rng: SampleRandom) -> None:
        """Sets w_avg, the w that truncation draws towards, to the mean over the streams of rng, labels by `label_law`.

        A frozen mapping network and one that keeps no mean are left alone.
        """
        mapping = self.network.mapping
        if "mapping" in self.frozen or mapping.w_avg_beta is None:
            return
        mapping.w_avg.copy_(mean_w(self, rng))

    # On disk.

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> StyleGAN2Student | None:
        return cls(network) if isinstance(network, stylegan2.Generator) else None

    def entries(self, trained: Generator | None = None) -> dict[str, torch.nn.Module | None]:
        """stylegan2-ada's four entries; a training fills in its D and its augment_pipe."""
        network = trained.network if isinstance(trained, StyleGAN2Student) else self.network
        return {"G": network, "D": None, "G_ema": self.network, "augment_pipe": None}

    def extras(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"training_set_kwargs": dict(data)}

    # By seed.

    def draw(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        return self.synthesize(self.mapped(seeds, class_index=class_index), seeds)

    @torch.no_grad()
    def mapped(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> Tensor:
        """The mapped latents ws [n,num_ws,w_dim] of n seeds, 0 to 2^32 - 1, truncated by `trunc`.

        class_index: 0 to label_dim - 1, or a label [label_dim] itself; None draws a label after the latent where the
        network is conditional.
        """
        z, labels = self.latents_of(seeds, class_index=class_index)
        return self.truncated(z, labels)

    def truncated(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """ws [n,num_ws,w_dim] of latents and labels, truncated by `trunc` towards what `trunc_mode` says."""
        if self.trunc_mode == "mean" or labels is None:
            return self.network.mapping(z, labels, truncation_psi=self.trunc)
        centres = torch.stack([self.class_mean(label) for label in labels])[:, None]
        return centres.lerp(self.network.mapping(z, labels), self.trunc)

    @torch.no_grad()
    def class_mean(self, label: Tensor) -> Tensor:
        """The mean w [w_dim] of one label [label_dim], over W_AVG_SAMPLES latents; computed once and kept."""
        key = label.cpu().numpy().tobytes()
        if key not in self._class_means:
            z = SampleRandom(0, "class mean", 0, [0], label.device).normal(W_AVG_SAMPLES, self.network.z_dim)[0]
            self._class_means[key] = self.network.mapping(z, label.expand(W_AVG_SAMPLES, -1))[:, 0].mean(dim=0)
        return self._class_means[key]

    def of_w(self, labels: Tensor | None) -> stylegan2.Generator:
        """The network whose `synthesis` makes images of w; labels [1,label_dim] are in w already."""
        return self.network

    def latents_of(self, seeds: Sequence[int], *, class_index: Chosen | None = None) -> tuple[Tensor, Tensor | None]:
        """The latents [n,z_dim], float64 where the device has it, and labels [n,label_dim] of n seeds; see `mapped`."""
        device = next(self.parameters()).device
        z, labels = numpy_latents(seeds, self.network.z_dim, self.label_law, class_index)
        return moved(z, device), None if labels is None else labels.to(device)

    @torch.no_grad()
    def synthesize(self, ws: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images [n,C,H,W] of ws [n,num_ws,w_dim]; n seeds key the noise of noise_mode 'random'."""
        noise = [SampleRandom(seed, "noise", 0, [0], ws.device) for seed in seeds]
        return self.network.synthesis(
            ws,
            noise_mode=self.noise_mode,
            noise_source=lambda *shape: torch.cat([random.normal(*shape) for random in noise]),
        )

    def uint8_of_ws(self, ws: Tensor, seeds: Sequence[int]) -> Tensor:
        """What `synthesize` gives, uint8 [n,C,H,W] on the CPU, in calls of `call_size`."""

        def draw(chosen: Sequence[int]) -> Tensor:
            return self.synthesize(ws[list(chosen)], [seeds[index] for index in chosen])

        return uint8_images(draw, range(len(ws)), call_size(ws.device, self.img_resolution))


def mean_w(student: StyleGAN2Student, rng: SampleRandom) -> Tensor:
    """Returns the mean w [w_dim] over the streams of rng, labels by `label_law`; moves no running mean."""
    labels = student.sample_labels(rng=rng)
    mapping = copy.copy(student.network.mapping)  # shares the weights; its mode is its own
    mapping.training = False
    return mapping(student.sample_latents(len(rng), rng=rng), labels)[:, 0].mean(0)


def checked_labels(labels: Tensor | None, label_dim: int, count: int) -> Tensor | None:
    if label_dim == 0:
        return None
    if labels is None:
        raise UserError(f"this generator is conditional on {label_dim} classes: labels (--class) are needed")
    if tuple(labels.shape) != (count, label_dim):
        raise UserError(f"labels of shape {list(labels.shape)}; this generator wants [{count}, {label_dim}], one-hot")
    return labels
