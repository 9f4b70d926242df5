"""A weighted sum of divergences, as Uni-Instruct's mixtures are (arXiv 2505.20755): sum of w_i D_i(q, p)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan_di.diffusion import edm_weight
from stylegan_di.dnnlib.util import UserError
from stylegan_di.loss_di import Divergence, Noised


@dataclass(frozen=True)
class Sum(Divergence):
    """The terms' student losses times their weights, at the same noise and with the same fake score.

    Args:
        terms: pairs of a weight > 0 and a divergence, at least one.

    Raises:
        UserError: two terms want the fake score trained differently.
    """

    terms: tuple[tuple[float, Divergence], ...]

    def __post_init__(self) -> None:
        own = {term for _, term in self.terms if type(term).score_loss is not Divergence.score_loss}
        if len(own) > 1:
            listed = " and ".join(sorted(map(str, own)))
            raise UserError(f"--divergence: {listed} train the one fake score differently; keep one of them in the sum")

    @property
    def differentiable(self) -> bool:
        return any(term.differentiable for _, term in self.terms)

    @property
    def needs_critic(self) -> bool:
        return any(term.needs_critic for _, term in self.terms)

    @property
    def needs_reals(self) -> bool:
        return any(term.needs_reals for _, term in self.terms)

    def student_loss(self, at: Noised) -> Tensor:
        return torch.stack([weight * term.student_loss(at) for weight, term in self.terms]).sum(dim=0)

    def score_loss(
        self,
        fake_score: Callable[..., Tensor],
        at: Noised,
        weight: Callable[[Tensor], Tensor] = edm_weight,
        reals: Noised | None = None,
    ) -> Tensor:
        """The loss of the one term that has its own, else denoising."""
        own = [term for _, term in self.terms if type(term).score_loss is not Divergence.score_loss]
        term = own[0] if own else self.terms[0][1]
        return term.score_loss(fake_score, at, weight, reals)
