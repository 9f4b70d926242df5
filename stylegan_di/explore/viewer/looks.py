"""What a viewer shows: pictures of one network or two at the same latent, as generate.py draws them.

With StyleGANs, a picture can be between two seeds: w_i = (1 - amount) w_i(seed) + amount w_i(second) for the chosen
styles i, and w_i(seed) for the others. All styles make an interpolation, some of them at amount 1 a mixture of styles.
"""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.latents import coarse_styles
from stylegan_di.explore.opening import open_generator
from stylegan_di.interfaces import Generator
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.seeded import call_size, uint8_images

NOISE_MODES = ("const", "random", "none")
MAX_SEED = 2**32 - 1
MAX_TRUNC = 2.0


@dataclass(frozen=True)
class Look:
    """One picture: `network` is 0 or 1, `class_index` None draws the label from the seed; see the module's head."""

    network: int = 0
    seed: int = 0
    class_index: int | None = None
    trunc: float = 1.0
    noise_mode: str = "const"
    second: int = 1
    amount: float = 0.0
    styles: tuple[int, ...] = ()


class Viewer:
    """One network, or one before and one after a training, to be looked at.

    `options` are those that all take, of 'trunc' and 'noise_mode'; `num_ws` is the number of styles, 0 where not all
    are StyleGANs.

    Args:
        names: paths, URLs or known names, one or two.
        device: where to draw.

    Raises:
        UserError: if a file cannot be shown, or the two have other latents or classes.
    """

    def __init__(self, names: Sequence[str], device: str = "cpu") -> None:
        self.generators = [open_generator(name).to(device) for name in names]
        self.given = list(names)
        self.names = [Path(name).name for name in names]
        self.origins = sorted({origin for name in names if (origin := zoo.terms_of(name))})
        first, last = self.generators[0], self.generators[-1]
        for what, one, other in (
            ("classes", first.label_dim, last.label_dim), ("shape of z", _latent_shape(first), _latent_shape(last))
        ):  # fmt: skip
            if one != other:
                raise UserError(
                    f"A and B do not match: {what} {one} against {other}; beside each other go networks of the same "
                    "latents, such as a GAN and what it was refined to"
                )
        self.label_dim = first.label_dim
        shared = set.intersection(*(set(generator.effective_options) for generator in self.generators))
        self.options = [name for name in ("trunc", "noise_mode") if name in shared]
        styles = {generator.num_ws for generator in self.generators}
        self.num_ws = styles.pop() if len(styles) == 1 else 0

    def look(self, asked: Mapping[str, Any]) -> Look:
        """Returns what a page asks for.

        Raises:
            UserError: for a name or value that is not accepted.
        """
        accepted: dict[str, Any] = {
            "network": lambda value: _whole(value, len(self.generators) - 1),
            "seed": lambda value: _whole(value, MAX_SEED),
            "class_index": lambda value: value is None or _whole(value, self.label_dim - 1),
            "trunc": lambda value: "trunc" in self.options and _real(value, -MAX_TRUNC, MAX_TRUNC),
            "noise_mode": lambda value: "noise_mode" in self.options and value in NOISE_MODES,
            "second": lambda value: _whole(value, MAX_SEED),
            "amount": lambda value: self.num_ws > 0 and _real(value, 0, 1),
            "styles": lambda value: isinstance(value, list) and all(_whole(s, self.num_ws - 1) for s in value),
        }
        values = dict(asked)
        for name, value in values.items():
            if name not in accepted or not accepted[name](value):
                raise UserError(f"{str(name)[:40]}={str(value)[:40]} is not accepted for these networks")
        return Look(**values | {"styles": tuple(values.get("styles", ()))})

    def picture(self, look: Look) -> Tensor:
        """The picture, uint8 [C,H,W] on the CPU; equal to generate.py's where the amount is 0."""
        shown = self._generator(look)
        if look.amount and look.styles:
            return shown.uint8_of_ws(ws_of(shown, look), [look.seed])[0]

        def draw(seeds: Sequence[int]) -> Tensor:
            return shown.draw(seeds, class_index=look.class_index)

        size = call_size(next(shown.parameters()).device, max(shown.image_shape[1:]))
        return uint8_images(draw, [look.seed], size)[0]

    def latent(self, look: Look) -> bytes:
        """The picture's w [1,num_ws,w_dim] as an .npz file, which generate.py --projected-w draws.

        Raises:
            UserError: if the network has no w.
        """
        buffer = io.BytesIO()
        np.savez(buffer, w=ws_of(self._generator(look), look).cpu().numpy())
        return buffer.getvalue()

    def described(self) -> dict[str, Any]:
        """What the page has to know, for JSON."""
        return {
            "networks": [
                {"name": name, "given": shlex.quote(given), "size": list(generator.image_shape[:0:-1])}
                for name, given, generator in zip(self.names, self.given, self.generators, strict=True)
            ],
            "classes": self.label_dim,
            "class_names": self._class_names(),
            "trunc": "trunc" in self.options,
            "noise": list(NOISE_MODES) if "noise_mode" in self.options else [],
            "styles": self.num_ws,
            "coarse": len(coarse_styles(self.num_ws)) if self.num_ws else 0,
            "origins": self.origins,
        }

    def _class_names(self) -> list[str]:
        """What can be chosen: the classes, in their order; none where labels are vectors."""
        laws = [generator.label_law for generator in self.generators]
        if any(law.vectors is not None for law in laws):
            return []
        named = next((law.names for law in laws if law.names), None)
        return list(named or map(str, range(self.label_dim)))

    def _generator(self, look: Look) -> Generator:
        options = {name: getattr(look, name) for name in self.options}
        return self.generators[look.network].with_options(**options)


def ws_of(gan: Generator, look: Look) -> Tensor:
    """The mapped latents [1,num_ws,w_dim] of a look."""
    ws = gan.mapped([look.seed], class_index=look.class_index)
    styles = list(look.styles)
    if look.amount and styles:
        second = gan.mapped([look.second], class_index=look.class_index)
        ws[:, styles] = ws[:, styles].lerp(second[:, styles], look.amount)
    return ws


def _latent_shape(generator: Generator) -> list[int]:
    return list(generator.sample_latents(1, rng=SampleRandom(0, "view", 0, [0])).shape[1:])


def _whole(value: Any, highest: int) -> bool:
    return type(value) is int and 0 <= value <= highest


def _real(value: Any, lowest: float, highest: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and lowest <= value <= highest
