"""The Frechet distance: closed forms, NVlabs' numbers, singular covariances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_di.metrics import frechet
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.statistics import FeatureStats, FeatureSums

GOLDEN = Path(__file__).parent / "golden" / "metrics"


def random_covariance(dim: int, seed: int, rank: int | None = None) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=[dim, rank or dim])
    return factor @ factor.T


def test_commuting_covariances_have_a_closed_form() -> None:
    """With one set of axes: |mu1 - mu2|^2 + the sum of (s1 - s2)^2 over the standard deviations."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=[6, 6]))
    s1, s2 = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6)
    mu1, mu2 = rng.normal(size=[2, 6])
    expected = np.square(mu1 - mu2).sum() + np.square(s1 - s2).sum()
    result = frechet_distance(mu1, axes * s1**2 @ axes.T, mu2, axes * s2**2 @ axes.T)
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_two_dimensions_have_a_closed_form() -> None:
    """tr sqrt(M) of a 2x2 matrix with positive eigenvalues is sqrt(tr M + 2 sqrt(det M))."""
    a, b = random_covariance(2, 1), random_covariance(2, 2)
    product = a @ b
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    np.testing.assert_allclose(frechet_distance(np.zeros(2), a, np.zeros(2), b), expected, rtol=1e-11)


def test_symmetric_and_zero_for_equals() -> None:
    rng = np.random.default_rng(3)
    mu1, mu2 = rng.normal(size=[2, 20])
    a, b = random_covariance(20, 4), random_covariance(20, 5)
    np.testing.assert_allclose(frechet_distance(mu1, a, mu2, b), frechet_distance(mu2, b, mu1, a), rtol=1e-12)
    assert 0 <= frechet_distance(mu1, a, mu1, a) < 1e-11 * np.trace(a)


def test_singular_covariances() -> None:
    """Distributions on a line and on another at right angles: nothing in common, so the traces add up."""
    x, y = np.zeros([3, 3]), np.zeros([3, 3])
    x[0, 0], y[1, 1] = 4.0, 9.0
    assert frechet_distance(np.zeros(3), x, np.zeros(3), y) == pytest.approx(13, rel=1e-12)
    low = random_covariance(40, 6, rank=5)
    assert frechet_distance(np.zeros(40), low, np.zeros(40), 4 * low) == pytest.approx(np.trace(low), rel=1e-9)
    assert frechet_distance(np.zeros(3), 0 * x, np.ones(3), 0 * x) == 3


def test_regular_covariances_need_no_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the two ways agree where both serve."""
    a, b, low = random_covariance(30, 7), random_covariance(30, 8), random_covariance(30, 9, rank=5)
    regular = frechet._root_trace(a, b)
    assert regular == pytest.approx(frechet._singular_root_trace(a, b), rel=1e-12)
    monkeypatch.setattr(frechet, "_singular_root_trace", lambda *_: -1.0)
    assert frechet._root_trace(a, b) == regular
    assert frechet._root_trace(a, low) == frechet._root_trace(low, a) == -1


def test_edms_fid() -> None:
    golden = np.load(GOLDEN / "edm_fid.npz")
    expected = json.loads((GOLDEN / "edm_fid.json").read_text())["fid_from_stats"]
    result = frechet_distance(golden["mu"], golden["sigma"], golden["mu_ref"], golden["sigma_ref"])
    assert result == pytest.approx(expected, rel=1e-10)


def test_stylegan2_adas_fid_divides_by_n() -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())["fid"]

    def stats(features: np.ndarray) -> FeatureStats:
        sums = FeatureSums(features.shape[1])
        sums.append(torch.from_numpy(features))
        return sums.finish()

    reals, fakes = stats(golden["real"]), stats(golden["gen"])
    by_n, by_n_minus_1 = (
        frechet_distance(fakes.mean, fakes.covariance(ddof), reals.mean, reals.covariance(ddof)) for ddof in (0, 1)
    )
    assert by_n == pytest.approx(expected, rel=1e-10)
    assert abs(by_n_minus_1 - expected) > 1e-4  # the two conventions differ
