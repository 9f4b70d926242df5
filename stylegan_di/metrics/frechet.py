"""The Frechet distance of two normal distributions (Dowson & Landau 1982; of Inception features FID, arXiv 1706.08500).

    d = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

with means mu and covariances S. With S1 = L L^T (Cholesky) the trace of the root is the sum of the roots of the
eigenvalues of the symmetric L^T S2 L. If a covariance is singular, it is computed as the sum of the singular values of
S1^(1/2) S2^(1/2), whose two factors come from symmetric eigenvalues; this is slower. Both ways give real numbers.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Returns the (squared) Frechet distance, in squared units of the features.

    Args:
        mu1, mu2: means [dim].
        sigma1, sigma2: covariances [dim,dim], symmetric and positive semi-definite.
    """
    root_trace = _root_trace(sigma1, sigma2)
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    return max(float(distance), 0.0)  # it is below zero only by rounding


def _root_trace(sigma1: np.ndarray, sigma2: np.ndarray) -> float:
    """tr (S1 S2)^(1/2)."""
    try:
        factor = np.linalg.cholesky(sigma1)
    except np.linalg.LinAlgError:
        return _singular_root_trace(sigma1, sigma2)
    values = np.linalg.eigvalsh(factor.T @ sigma2 @ factor)
    if values[0] <= len(values) * np.finfo(np.float64).eps * values[-1]:  # the smallest is a rounding error
        return _singular_root_trace(sigma1, sigma2)
    return float(np.sqrt(values).sum())


def _singular_root_trace(sigma1: np.ndarray, sigma2: np.ndarray) -> float:
    return float(np.linalg.svd(_root(sigma1) @ _root(sigma2), compute_uv=False).sum())


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix; eigenvalues below zero are rounding errors."""
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
