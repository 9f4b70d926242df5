"""Several teachers of one space as one denoiser: --teacher=0.7*A.pkl+0.3*B.pkl, or one for coarse and one for fine.

With D = sum_i w_i D_i / sum_i w_i the scores mix alike, s = sum_i w_i s_i / sum_i w_i: at each noise level the score of
the normalised product of p_i^(w_i / sum w).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.torch_utils.precision import moved

_NUMBER = r"[0-9]*[.]?[0-9]+"
_NEXT = re.compile(rf"\+(?={_NUMBER}\*)")  # a further term begins with its weight, so that names may contain a plus
_TERM = re.compile(rf"(?:({_NUMBER})\*)?(.+?)(?:@({_NUMBER})-({_NUMBER})?)?")


@dataclass(frozen=True)
class TeacherTerm:
    """One teacher of --teacher: its name, path or URL, its weight, and the noise levels at which it takes part."""

    source: str
    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf

    @property
    def covers_all(self) -> bool:
        """Whether it takes part at all noise levels."""
        return (self.low, self.high) == (0.0, math.inf)


def join_teachers(texts: Sequence[str]) -> str | None:
    """--teacher, given more than once, as one text: ('a.pkl', '0.3*b.pkl') -> 'a.pkl+0.3*b.pkl'; None for none."""
    weighted = [text if re.match(rf"{_NUMBER}\*", text) else f"1*{text}" for text in texts[1:]]
    return "+".join([*texts[:1], *weighted]) or None


def parse_teachers(text: str) -> tuple[TeacherTerm, ...]:
    """'0.7*a.pkl+0.3*b.pkl@0.5-20' -> its terms.

    Raises:
        UserError: a weight is 0, or a range of noise levels is empty.
    """
    terms = []
    for part in _NEXT.split(text):
        match = _TERM.fullmatch(part)
        if match is None:
            raise UserError(f"--teacher={text}: '{part}' names no teacher; write 0.7*A.pkl+0.3*B.pkl")
        weight, source, low, high = match.groups()
        term = TeacherTerm(source, float(weight or 1), float(low or 0), float(high or math.inf))
        if term.weight == 0 or term.low >= term.high:
            raise UserError(
                f"--teacher={text}: '{part}' has no part in it; accepted are weights above 0, and noise levels that "
                "rise, such as 0.5*A.pkl@0.002-1"
            )
        terms.append(term)
    return tuple(terms)


class MixedDenoiser(Denoiser):
    """The weighted mean of denoisers that see the same images and labels, each within its noise levels.

    Args:
        denoisers: of one resolution, number of channels and number of classes.
        terms: as many; their sources serve in messages.

    Raises:
        UserError: at some noise level between the lowest and the highest no teacher takes part.
    """

    weights: Tensor
    lows: Tensor
    highs: Tensor

    def __init__(self, denoisers: Sequence[Denoiser], terms: Sequence[TeacherTerm]) -> None:
        super().__init__()
        self.denoisers = torch.nn.ModuleList(denoisers)
        self.training = denoisers[0].training
        first = denoisers[0]
        self.img_resolution, self.img_channels = first.img_resolution, first.img_channels
        self.img_width = first.img_width
        self.label_dim, self.known_labels = first.label_dim, first.known_labels
        pairs = list(zip(denoisers, terms, strict=True))
        lows = [max(term.low, denoiser.sigma_min) for denoiser, term in pairs]
        highs = [min(term.high, denoiser.sigma_max) for denoiser, term in pairs]
        self.sigma_min, self.sigma_max = min(lows), max(highs)
        reached = self.sigma_min
        for low, high in sorted(zip(lows, highs, strict=True)):
            if low > reached:
                listed = "+".join(term.source for term in terms)
                raise UserError(f"--teacher: none of {listed} takes part at noise levels from {reached:g} to {low:g}")
            reached = max(reached, high)
        # Buffers, so that a hash of the weights tells mixtures apart.
        self.register_buffer("weights", torch.tensor([term.weight for term in terms]))
        self.register_buffer("lows", torch.tensor(lows, dtype=torch.float64))
        self.register_buffer("highs", torch.tensor(highs, dtype=torch.float64))
        self.always = all(low == self.sigma_min for low in lows) and all(high == self.sigma_max for high in highs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixedDenoiser:
        """Moves the bounds in float32 to a device without float64."""
        self.lows, self.highs = (moved(bound, fn(self.weights).device) for bound in (self.lows, self.highs))
        return super()._apply(fn, recurse)

    def members(self) -> Iterator[Denoiser]:
        """The teachers."""
        for each in self.denoisers:
            assert isinstance(each, Denoiser)
            yield each

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = sigma.expand(len(x))
        if self.always:
            shares = self.weights / self.weights.sum()
            parts = [share * each(x, sigma, labels) for share, each in zip(shares, self.members(), strict=True)]
            return torch.stack(parts).sum(dim=0)
        inside = (sigma[:, None] >= self.lows) & (sigma[:, None] <= self.highs)
        shares = inside * self.weights
        shares = shares / shares.sum(dim=1, keepdim=True)
        mixed = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for index, each in enumerate(self.members()):  # a network is asked only about the samples it has a part in
            (own,) = inside[:, index].nonzero(as_tuple=True)
            if len(own):
                part = each(x[own], sigma[own], None if labels is None else labels[own])
                mixed = mixed.index_add(0, own, (per_sample(shares[own, index], part) * part).to(mixed.dtype))
        return mixed

    def features(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Those of the teacher with the largest weight."""
        return self._leading().features(x, sigma, labels)

    def trainable_copy(self) -> Denoiser:
        """A copy of the teacher with the largest weight."""
        return self._leading().trainable_copy()

    def adapted_copy(self, rank: int) -> Denoiser:
        """A copy of the teacher with the largest weight, with adapters."""
        return self._leading().adapted_copy(rank)

    def compile_network(self) -> None:
        for each in self.members():
            each.compile_network()

    def _leading(self) -> Denoiser:
        return list(self.members())[int(self.weights.argmax())]
