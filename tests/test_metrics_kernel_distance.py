"""The kernel distance: NVlabs' numbers, the definition written out, its unbiasedness."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.kernel_distance import kernel_distance

GOLDEN = Path(__file__).parent / "golden" / "metrics"


@pytest.mark.parametrize(("num_subsets", "size"), [(8, 100), (3, 1000)])
def test_nvlabs_values(num_subsets: int, size: int) -> None:
    """Theirs are of float32 and of numpy's global generator, seeded with 11."""
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())[f"kid_subsets{num_subsets}_size{size}_seed11"]
    options = {"num_subsets": num_subsets, "max_subset_size": size, "random": np.random.RandomState(11)}
    assert kernel_distance(golden["real"], golden["gen"], **options) == pytest.approx(expected, rel=2e-6)


def test_the_definition() -> None:
    """All pairs of one subset that holds everything, one by one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[6, 3]), rng.normal(size=[6, 3])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 3 + 1) ** 3

    within = sum(k(a, b) for s in (x, y) for a, b in itertools.permutations(s, 2)) / 30
    expected = within - 2 * sum(k(a, b) for a in x for b in y) / 36
    assert kernel_distance(y, x, num_subsets=2) == pytest.approx(expected, rel=1e-12)


def test_unbiased_and_repeatable() -> None:
    """Two sets of one distribution: 0 within the spread of the mean, on both sides of it."""
    rng = np.random.default_rng(1)
    values = [kernel_distance(*rng.normal(size=[2, 40, 4]), num_subsets=1) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0 < max(values)
    a, b = rng.normal(size=[2, 50, 4])
    assert kernel_distance(a, b, max_subset_size=10) == kernel_distance(a, b, max_subset_size=10)
    assert kernel_distance(a, b + 3) > 1


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="2 images or more, not 1 and 5"):
        kernel_distance(np.zeros([1, 2]), np.zeros([5, 2]))
