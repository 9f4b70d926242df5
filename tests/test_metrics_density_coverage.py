"""Density and coverage: a slow but obvious reference, expected values of the paper, cases counted by hand, ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics import manifolds as module
from stylegan_di.metrics.manifolds import density_coverage


def normal(num: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=[num, dim])).to(dtype)


def obvious(reals: Tensor, fakes: Tensor, k: int) -> tuple[float, float]:
    """The definition, in Python's numbers."""
    inside, covered = 0, 0
    for number, center in enumerate(reals.tolist()):
        others = [other for index, other in enumerate(reals.tolist()) if index != number]
        radius = sorted(math.dist(center, other) for other in others)[k - 1]
        count = sum(math.dist(center, fake) < radius for fake in fakes.tolist())
        inside, covered = inside + count, covered + (count > 0)
    return inside / (k * len(fakes)), covered / len(reals)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_definition(k: int, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    reals, fakes = normal(60, 4, 0, dtype), 0.7 * normal(41, 4, 1, dtype) + 0.3
    assert density_coverage(reals, fakes, k=k) == obvious(reals, fakes, k)


def test_ties_are_outside() -> None:
    """Whole numbers, whose mean is 0: distances are exact, and many equal a radius."""
    half = torch.randint(0, 4, [40, 3], generator=torch.Generator().manual_seed(0)).double()
    reals, fakes = torch.cat([half, -half]), torch.randint(-3, 4, [50, 3], generator=torch.Generator().manual_seed(1))
    for k in (1, 2, 5):
        assert density_coverage(reals, fakes.double(), k=k) == obvious(reals, fakes.double(), k)


def test_on_a_line_by_hand() -> None:
    """k = 1: reals -6, -2, 0, 8 have the radii 4, 2, 2, 8. Of the fakes -2, 1, 9 they hold none, -2, 1 and 1 and 9."""
    reals, fakes = (torch.tensor(values).double()[:, None] for values in ([-6, -2, 0, 8], [-2, 1, 9]))
    assert density_coverage(reals, fakes, k=1) == (4 / 3, 3 / 4)


@pytest.mark.parametrize("dim", [2, 64])
def test_a_set_with_itself(dim: int) -> None:
    """Each ball holds its centre and the k - 1 nearest."""
    reals = normal(300, dim, 0, torch.float32)
    assert density_coverage(reals, reals, k=5) == (1.0, 1.0)


@pytest.mark.parametrize(("num_reals", "num_fakes"), [(500, 500), (400, 200)])
@pytest.mark.parametrize("k", [1, 5])
def test_expected_values_of_equal_laws(num_reals: int, num_fakes: int, k: int) -> None:
    """Density 1; coverage 1 - (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k)), so 1 - 2^-k for N = M (lemma 2)."""
    found = [
        density_coverage(normal(num_reals, 8, 2 * seed), normal(num_fakes, 8, 2 * seed + 1), k=k) for seed in range(20)
    ]
    density, coverage = np.mean(found, axis=0)
    missed = math.prod((num_reals - i) / (num_fakes + num_reals - i) for i in range(1, k + 1))
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - missed, abs=0.02)
    if num_reals == num_fakes:
        assert 1 - missed == pytest.approx(1 - 2.0**-k, abs=0.01)


def test_what_each_is_for() -> None:
    """Few modes lower the coverage and not the density; a far outlier among the fakes changes neither much."""
    reals, fakes = normal(400, 4, 0), normal(400, 4, 1)
    density, coverage = density_coverage(reals, fakes)
    few_density, few_coverage = density_coverage(reals, fakes[fakes.norm(dim=1) < 1.5])
    assert few_density > density
    assert few_coverage < 0.7 * coverage
    outlier = torch.cat([fakes, torch.full([1, 4], 100.0, dtype=torch.float64)])
    assert density_coverage(reals, outlier) == pytest.approx((density, coverage), rel=0.01)


def test_too_few_are_refused() -> None:
    with pytest.raises(UserError, match="more than 5 real images"):
        density_coverage(normal(5, 2, 0), normal(9, 2, 1))
    with pytest.raises(UserError, match="not 9 and 0"):
        density_coverage(normal(9, 2, 0), normal(0, 2, 1))
