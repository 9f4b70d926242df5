"""RealUID: inverse distillation whose fake score also sees real samples, with no discriminator.

Kornilov et al., "Universal Inverse Distillation for Matching Models with Real-Data Supervision (No GANs)", ICLR 2026,
arXiv 2509.22459. With x a student's sample, y a real one, and x_s, y_s both noised, a denoiser f has the loss

    L(f) = alpha |f(x_s) - (beta / alpha) x|^2 + (1 - alpha) |f(y_s) - (1 - beta) / (1 - alpha) y|^2.

The fake score minimises L, and the student minimises L(D_p) - L(D_q). The minimiser over all functions is, where q and
p are the noised densities of the student and of real samples, and D^q and D^p their exact denoisers,

    D_q = (beta q D^q + (1 - beta) p D^p) / (alpha q + (1 - alpha) p),

so D_q = D^p for q = p whatever alpha and beta are. At the minimiser, the mean of L(D_p) - L(D_q) is the integral of
(alpha q + (1 - alpha) p) |D_p - D_q|^2: never negative, and zero for q = p if the teacher is right, D_p = D^p. By the
envelope theorem, its gradient in the student is that with both networks as fixed functions. Only x depends on it:

    <D_p - D_q, alpha (D_p + D_q) - 2 beta x>.

Up to what does not depend on f, L is the two denoising losses and a correlation, in a form that needs no division:

    alpha |f(x_s) - x|^2 + (1 - alpha) |f(y_s) - y|^2 + 2 (alpha - beta) (<f(x_s), x> - <f(y_s), y>).

These formulas are derived from the paper's idea that q = p must stay the optimum, not copied from its text. The notes
to the authors' code recommend alpha and beta from 0.85 to 1 with beta / alpha = 0.98 or 1.02. For alpha = beta,
a right teacher has D_p - D_q in the direction that it has without real samples, and smaller where p exceeds q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stylegan_di.diffusion import edm_weight
from stylegan_di.loss_di import Divergence, Noised
from stylegan_di.specs import Range, number


@dataclass(frozen=True)
class RealUID(Divergence):
    """k <D_p - D_q, alpha (D_p + D_q) / 2 - beta x>, k = 1 / mean|x - D_p| as in SiD, held constant.

    alpha and beta are above 0 and at most 1: the shares of the student's samples in the fake score's loss. Both 1 is
    `SiD(0.5)` with plain denoising, and needs no real samples.
    """

    alpha: float = number(0.94, Range(0, 1, open_low=True))
    beta: float = number(0.96, Range(0, 1, open_low=True))
    differentiable = True

    @property
    def needs_reals(self) -> bool:
        return (self.alpha, self.beta) != (1, 1)

    def student_loss(self, at: Noised) -> Tensor:
        loss = (at.teacher_x0 - at.fake_x0) * (self.alpha / 2 * (at.teacher_x0 + at.fake_x0) - self.beta * at.x)
        return (at.inverse_teacher_error * loss).flatten(1).sum(dim=1)

    def score_loss(
        self,
        fake_score: Callable[..., Tensor],
        at: Noised,
        weight: Callable[[Tensor], Tensor] = edm_weight,
        reals: Noised | None = None,
    ) -> Tensor:
        if not self.needs_reals:
            return super().score_loss(fake_score, at, weight)
        if reals is None:
            raise ValueError("this divergence's fake score learns from real samples, and there are none")

        def terms(samples: Noised) -> tuple[Tensor, Tensor]:
            """|f - x|^2 and <f, x> of each sample [B]."""
            denoised = fake_score(samples.noisy, samples.sigma, samples.labels)
            error, product = (denoised - samples.x).square(), denoised * samples.x
            return error.flatten(1).sum(dim=1), product.flatten(1).sum(dim=1)

        fake_error, fake_product = terms(at)
        real_error, real_product = terms(reals)
        errors = self.alpha * fake_error + (1 - self.alpha) * real_error
        return weight(at.sigma) * (errors + 2 * (self.alpha - self.beta) * (fake_product - real_product))
