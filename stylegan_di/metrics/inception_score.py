"""The Inception score (Salimans et al. 2016, arXiv 1606.03498): exp E_x KL(p(class | x) || p(class)).

It uses no real images. p(class) is the mean over the images of a part; the score is the mean over equal parts.
"""

from __future__ import annotations

import numpy as np

from stylegan_di.dnnlib.util import UserError


def inception_score(probabilities: np.ndarray, *, splits: int = 10) -> tuple[float, float]:
    """Returns the mean and the standard deviation (over N, not N - 1) of the parts' scores.

    Args:
        probabilities: class probabilities [N,classes], whose rows sum to 1; the score is computed in float64.
        splits: number of parts, which follow the order of the images.

    Raises:
        UserError: if there are fewer images than parts.
    """
    num = len(probabilities)
    if num < splits:
        raise UserError(f"the Inception score in {splits} parts needs {splits} images or more, not {num}")
    scores = []
    for index in range(splits):
        part = probabilities[index * num // splits : (index + 1) * num // splits].astype(np.float64)
        mean = part.mean(axis=0, keepdims=True)
        positive = part > 0  # p log p is 0 at 0
        terms = part * (np.log(np.where(positive, part, 1)) - np.log(np.where(positive, mean, 1)))
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
