"""Score implicit matching.

Luo et al., "One-Step Diffusion Distillation through Score Implicit Matching", NeurIPS 2024, arXiv 2410.16794. For a
distance d of scores, their score-divergence gradient theorem (3.1) says that, with samples x_s drawn at theta but
their places held constant, the gradient of E d(s_q - s_p) in theta is the gradient of

    E -<d'(s_q - s_p), s_q - s(x_s | x)>,        s(x_s | x) = (x - x_s) / sigma^2,

in which theta moves x and x_s, and the two scores are fixed functions. In denoisers, and for the Pseudo-Huber distance
d = sqrt(|D_p - D_q|^2 + c^2) - c, which is theirs of choice, this is

    <D_p - D_q, D_q - x> / sqrt(|D_p - D_q|^2 + c^2).

It is SiD with alpha = 1 under another factor. The factor is part of d' and not held constant.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stylegan_di.loss_di import Divergence, Noised
from stylegan_di.specs import POSITIVE, number


@dataclass(frozen=True)
class SIM(Divergence):
    """<D_p - D_q, D_q - x> / sqrt(|D_p - D_q|^2 + c^2), the norm over all dimensions of a sample.

    Where the denoisers differ by much more than c, all samples count the same; below, as their squared difference.
    The default is 0.00054 sqrt(d) of Pseudo-Huber's first use in diffusion (arXiv 2310.14189) at d = 3 * 32 * 32.
    """

    c: float = number(0.03, POSITIVE)
    differentiable = True

    def student_loss(self, at: Noised) -> Tensor:
        difference = (at.teacher_x0 - at.fake_x0).flatten(1)
        product = (difference * (at.fake_x0 - at.x).flatten(1)).sum(dim=1)
        return product / (difference.square().sum(dim=1) + self.c**2).sqrt()
