"""The Inception score: NVlabs' numbers, cases that can be said by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.inception_score import inception_score

GOLDEN = Path(__file__).parent / "golden" / "metrics"


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_nvlabs_values(splits: int) -> None:
    probabilities = np.load(GOLDEN / "sg2_metrics.npz")["probs"]
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())[f"is_splits{splits}"]
    assert inception_score(probabilities, splits=splits) == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_by_hand() -> None:
    """Certain of n classes equally often: n. Equally uncertain of all: 1. Certain of always one class: 1."""
    certain = np.tile(np.eye(5), [8, 1])
    assert inception_score(certain, splits=4) == pytest.approx((5, 0), abs=1e-12)
    assert inception_score(np.full([10, 5], 0.2), splits=2) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.tile(np.eye(5)[:1], [10, 1])) == pytest.approx((1, 0), abs=1e-12)
    halves = np.concatenate([np.tile(np.eye(2), [4, 1]), np.tile(np.eye(2)[:1], [8, 1])])
    assert inception_score(halves, splits=2) == pytest.approx((1.5, 0.5), abs=1e-12)  # 2 and 1


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="10 images or more, not 9"):
        inception_score(np.full([9, 3], 1 / 3))
