"""StyleGAN3's generator as a student (Karras et al. 2021, arXiv 2106.12423)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks import stylegan2, stylegan3
from stylegan_di.random import SampleRandom
from stylegan_di.students.stylegan2 import StyleGAN2Student, checked_labels
from stylegan_di.torch_utils.precision import at_least_float32

NUM_LAYERS = 14  # of a network whose file does not say


def part_names(num_layers: int) -> list[str]:
    """What can be frozen of a StyleGAN3 with so many layers before ToRGB, which is the last."""
    return ["mapping", "input", *(f"L{index}" for index in range(num_layers + 1))]


def position_transform(translate: tuple[float, float], rotate: float) -> Tensor:
    """Returns the generator's `transform` [3,3], which maps positions back to where the picture had them.

    Args:
        translate: (x, y) of the picture to the right and down, in pictures.
        rotate: anticlockwise, in degrees.
    """
    cos, sin = math.cos(math.radians(rotate)), math.sin(math.radians(rotate))
    matrix = [[cos, sin, translate[0]], [-sin, cos, translate[1]], [0, 0, 1]]
    return torch.from_numpy(np.linalg.inv(np.array(matrix)))


class StyleGAN3Student(StyleGAN2Student):
    """images = synthesis(mapping(z, labels)). It has no noise inputs; in train mode its running means move.

    Args:
        network: NVlabs' Generator, kept as `.network`.
        trunc: truncation psi; 1 for none, 0 for the mean image; below 1, samples are less diverse.
    """

    kind = "StyleGAN3"
    options: ClassVar[Sequence[str]] = ("trunc", "trunc_mode", "translate", "rotate")
    means_move_with: ClassVar[Sequence[str]] = ("discriminator",)
    network: stylegan3.Generator  # type: ignore[assignment]

    def __init__(self, network: stylegan3.Generator, *, trunc: float = 1, trunc_mode: str = "mean") -> None:
        super().__init__(network, trunc=trunc, trunc_mode=trunc_mode)  # type: ignore[arg-type]

    def _with(self, **options: Any) -> StyleGAN3Student:
        """translate (x, y) and rotate (degrees, anticlockwise) move the picture, on a copy of the network."""
        network = self.network
        if {"translate", "rotate"} & options.keys():
            translate, rotate = options.get("translate", (0.0, 0.0)), options.get("rotate", 0.0)
            if len(translate) != 2 or not all(map(math.isfinite, (*translate, rotate))):
                given = ",".join(map(str, translate))
                raise UserError(f"--translate={given} --rotate={rotate}: accepted are finite numbers X,Y and DEG")
            network = copy.deepcopy(network)
            network.synthesis.input.transform.copy_(position_transform(translate, rotate))
        own = {"trunc": self.trunc, "trunc_mode": self.trunc_mode}
        return StyleGAN3Student(network, **{name: options.get(name, value) for name, value in own.items()})

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        """z [B,z_dim]; labels [B,label_dim] one-hot; rng is not needed: nothing else is random.

        Raises:
            UserError: if labels are missing or given against the network's nature.
        """
        labels = checked_labels(labels, self.label_dim, z.shape[0])
        if self.trunc_mode == "class":
            images = self.network.synthesis(self.truncated(z, labels))
        else:
            images = self.network(z, labels, truncation_psi=self.trunc, update_emas=self.training)
        return at_least_float32(images)

    # In a training.

    def part_names(self) -> Sequence[str]:
        return part_names(self.network.synthesis.num_layers)

    def part(self, name: str) -> torch.nn.Module:
        synthesis = self.network.synthesis
        if name == "mapping":
            return self.network.mapping
        return synthesis.input if name == "input" else synthesis.get_submodule(synthesis.layer_names[int(name[1:])])

    def running_means(self) -> list[Tensor]:
        return [buffer for name, buffer in self.named_buffers() if name.endswith(("w_avg", "magnitude_ema"))]

    def mapped_in_training(self, z: Tensor, labels: Tensor | None, *, moves: bool) -> Tensor:
        return self.network.mapping(z, labels, update_emas=moves)

    def synthesized_in_training(self, ws: Tensor, rng: SampleRandom, *, moves: bool) -> Tensor:
        return self.network.synthesis(ws, update_emas=moves)

    # On disk.

    @classmethod
    def of_network(cls, network: torch.nn.Module | None, extras: Mapping[str, Any]) -> StyleGAN3Student | None:
        return cls(network) if isinstance(network, stylegan3.Generator) else None

    # By seed.

    @torch.no_grad()
    def synthesize(self, ws: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images [n,C,H,W] of ws [n,num_ws,w_dim]; the seeds matter only to generators with noise."""
        return self.network.synthesis(ws)


def gan_student(network: stylegan2.Generator | stylegan3.Generator) -> StyleGAN2Student:
    """A StyleGAN2 or StyleGAN3 as a student."""
    return StyleGAN3Student(network) if isinstance(network, stylegan3.Generator) else StyleGAN2Student(network)
