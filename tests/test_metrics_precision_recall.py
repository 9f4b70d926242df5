"""Precision and recall: NVlabs' numbers, cases that can be counted by hand, a slow but obvious reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics import manifolds as module
from stylegan_di.metrics.manifolds import precision_recall

GOLDEN = Path(__file__).parent / "golden" / "metrics"


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nvlabs_values(k: int, dtype: torch.dtype) -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())[f"pr_k{k}_fp{dtype.itemsize * 8}"]
    reals, fakes = (torch.from_numpy(golden[name]).to(dtype) for name in ("real", "gen"))
    assert precision_recall(reals, fakes, k=k) == pytest.approx(expected, abs=1e-6)  # theirs are float32


@pytest.mark.parametrize("k", [1, 3, 5])
def test_nvlabs_half_precision_is_within_an_image(k: int) -> None:
    """They round features and distances to float16; of 300 images that moved at most one across a ball's edge."""
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    rounded = json.loads((GOLDEN / "sg2_metrics.json").read_text())[f"pr_k{k}_fp16_asis"]
    found = precision_recall(torch.from_numpy(golden["real"]), torch.from_numpy(golden["gen"]), k=k)
    assert found == pytest.approx(rounded, abs=1 / 300 + 1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [50, 64])
def test_nvlabs_values_in_batches(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    expected = json.loads((GOLDEN / "sg2_metrics.json").read_text())[f"pr_k{k}_fp32_batch50_64"]
    found = precision_recall(torch.from_numpy(golden["real"]), torch.from_numpy(golden["gen"]), k=k)
    assert found == pytest.approx(expected, abs=1e-6)


def test_on_a_line_by_hand() -> None:
    """k = 1. Reals 0, 1, 10: balls [-1,1], [0,2], [1,19]. Fakes 2, 3, 30, 32: balls [1,3], [2,4], [28,32], [30,34]."""
    reals, fakes = (torch.tensor(values)[:, None] for values in ([0.0, 1.0, 10.0], [2.0, 3.0, 30.0, 32.0]))
    assert precision_recall(reals, fakes, k=1) == (2 / 4, 1 / 3)


def obvious(probes: Tensor, manifold: Tensor, k: int) -> float:
    inside = 0
    radii = [(manifold - center).norm(dim=1).sort().values[k] for center in manifold]
    for probe in probes:
        distances = (manifold - probe).norm(dim=1)
        inside += any(d <= r for d, r in zip(distances, radii, strict=True))
    return inside / len(probes)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    reals = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    fakes = 1.2 * torch.randn(70, 4, generator=generator, dtype=torch.float64) + 0.5
    expected = obvious(fakes, reals, 3), obvious(reals, fakes, 3)
    for chunk in (1000, 90, 32, 1):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert precision_recall(reals, fakes) == expected


def test_the_same_images_are_perfect_and_far_ones_are_not() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert precision_recall(features, features) == (1, 1)
    assert precision_recall(features, features + 100) == (0, 0)
    assert precision_recall(features, features[:4].repeat(10, 1))[0] == 1  # copies of a few reals: precise,
    assert precision_recall(features, features[:4].repeat(10, 1))[1] == 4 / 50  # and nothing else recalled


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="more than 3"):
        precision_recall(torch.zeros(10, 2), torch.zeros(3, 2))
