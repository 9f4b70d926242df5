"""The Fisher divergence, E w(sigma) |s_p(x_s) - s_q(x_s)|^2 over x_s ~ q_sigma, with its exact gradient.

In denoisers the divergence is E w / sigma^4 |D_p - D_q|^2. The student's parameters theta enter twice. They move the
samples x_s, which the derivative of |D_p - D_q|^2 with D_p and D_q as fixed functions accounts for. And they change
D_q, which by the score-divergence gradient theorem (Luo et al. 2024, arXiv 2410.16794, theorem 3.1) amounts to the
derivative of 2 <D_p - D_q, D_q - x>, again with fixed functions. The sum of both is

    w / sigma^4 <D_p - D_q, D_p + D_q - 2 x>.

If the fake score is exact, the mean of this loss is the divergence, and the mean of its gradient the divergence's.
Inverse distillation arrives at the same loss (Kornilov et al. 2025, arXiv 2509.22459). SiD with alpha = 0.5 is half of
it under another weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stylegan_di.diffusion import per_sample
from stylegan_di.loss_di import Divergence, Noised

FisherWeight = Literal["sigma4", "sigma2", "one"]
POWERS: dict[FisherWeight, int] = {"sigma4": 0, "sigma2": 2, "one": 4}  # of 1 / sigma in w / sigma^4


@dataclass(frozen=True)
class Fisher(Divergence):
    """w / sigma^4 <D_p - D_q, D_p + D_q - 2 x>; `weight` w is 'sigma4': sigma^4, 'sigma2': sigma^2, or 'one': 1.

    With 'one' the smallest noise levels outweigh all others.
    """

    weight: FisherWeight = "sigma4"
    differentiable = True

    def student_loss(self, at: Noised) -> Tensor:
        loss = (at.teacher_x0 - at.fake_x0) * (at.teacher_x0 + at.fake_x0 - 2 * at.x)
        return (loss / per_sample(at.sigma, at.x) ** POWERS[self.weight]).flatten(1).sum(dim=1)
