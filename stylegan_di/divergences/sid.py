"""Score identity distillation.

Zhou et al., "Score identity Distillation", ICML 2024, arXiv 2404.04057. In denoisers at one noise level its loss is

    k <D_p - D_q, (D_p - x) - alpha (D_p - D_q)>,        k = 1 / mean|x - D_p|, held constant.

It rests on E <D_p - D_q, D_q - x> = 0 for the exact D_q = E[x | x_s]: both E |D_p - D_q|^2 and E <D_p - D_q, D_p - x>
are sigma^4 times the Fisher divergence, and the loss is the second minus alpha times the first. But for k, alpha = 0.5
has half the Fisher divergence's exact gradient (`fisher.py`), and alpha = 1 leaves out the part of it that comes from
where the samples lie (`sim.py`). The authors use 1.0 and 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stylegan_di.loss_di import Divergence, Noised
from stylegan_di.specs import Range, number


@dataclass(frozen=True)
class SiD(Divergence):
    """k <D_p - D_q, (D_p - x) - alpha (D_p - D_q)>, k = 1 / mean|x - D_p|; alpha from 0 to 10."""

    alpha: float = number(1.0, Range(0, 10))
    differentiable = True

    def student_loss(self, at: Noised) -> Tensor:
        difference = at.teacher_x0 - at.fake_x0
        loss = difference * ((at.teacher_x0 - at.x) - self.alpha * difference)
        return (at.inverse_teacher_error * loss).flatten(1).sum(dim=1)
