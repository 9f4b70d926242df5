"""Weighs the student's errors by frequency, so that fine detail counts as much as the coarse picture (--whitening).

The gradient g of a divergence in an image x says that x - g would be better: it is the gradient of |x - (x - g)|^2 / 2.
Amplitudes of natural images fall as 1 / f with the frequency f (Field 1987, JOSA A 4, 2379), and so do the errors; a
generator of few parameters, which cannot mend all, mends the coarse ones. In whitened images, whose octaves weigh
alike, the same error is |A (x - (x - g))|^2 / 2 with A ~ f, and its gradient is A^2 g. `--whitening` = w says how far
to go: the frequency f, in cycles per image, is multiplied by max(1, f / 2)^(2 w). Where g is zero nothing changes, so a
student that can represent the teacher's images is led to the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

COARSE = 2.0  # cycles per image, up to which nothing is changed


def whitened(gradient: Tensor, share: float) -> Tensor:
    """Multiplies the frequencies of a gradient [B,C,H,W] by max(1, f / 2)^(2 share), f in cycles per image."""
    if not share:
        return gradient
    rows, columns = (torch.fft.fftfreq(size, 1 / size, device=gradient.device) for size in gradient.shape[2:])
    gain = (torch.hypot(rows[:, None], columns) / COARSE).clamp_min(1) ** (2 * share)
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return torch.fft.ifft2(torch.fft.fft2(wide) * gain).real.to(gradient.dtype)
