"""Conformance: what holds for every entry of the table of metrics, and is inherited by new ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.extractors import EXTRACTORS, open_extractor
from stylegan_di.metrics.statistics import FeatureStats, FeatureSums
from stylegan_di.metrics.table import (
    METRICS,
    Metric,
    MotionMetric,
    PathMetric,
    figures_of,
    is_better,
    metric,
    need_reals,
)

IMAGES = sorted(name for name, entry in METRICS.items() if isinstance(entry, Metric))
CPU = torch.device("cpu")
DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


def statistics_of(features: np.ndarray, *, keep: bool) -> FeatureStats:
    sums = FeatureSums(features.shape[1], keep_features=keep)
    sums.append(torch.from_numpy(features))
    return sums.finish(extractor="test")


def samples(name: str, quality: str, seed: int) -> FeatureStats:
    """Features such as the metric takes: of good images, or of bad ones."""
    entry = METRICS[name]
    assert isinstance(entry, Metric)
    rng = np.random.default_rng(seed)
    if entry.of_classes:
        sharpness = 9 if quality == "good" else 1
        logits = sharpness * rng.normal(size=[200, 6])
        return statistics_of(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), keep=True)
    shift = 0 if quality == "good" else 4
    if entry.extractor in ("spectrum", "texture"):  # whose features are positive, and so many
        dim = open_extractor(entry.extractor).dim
        return statistics_of(rng.uniform(1, 2, size=[200, dim]) + shift, keep=entry.needs_features)
    stats = statistics_of(rng.normal(shift, 1, size=[200, 6]), keep=entry.needs_features)
    return dataclasses.replace(stats, labels=np.arange(200) % 4) if entry.needs_labels else stats


@pytest.mark.parametrize("name", METRICS)
def test_entries_are_complete(name: str) -> None:
    entry = METRICS[name]
    assert not isinstance(entry, Metric) or entry.extractor in EXTRACTORS
    assert len(set(entry.suffixes)) == len(entry.suffixes) > 0
    assert f"`{name}`" in DOCS.read_text()


@pytest.mark.parametrize("name", IMAGES)
def test_good_images_are_better_than_bad_ones(name: str) -> None:
    entry = METRICS[name]
    assert isinstance(entry, Metric)
    reals = samples(name, "good", 0)
    good, bad = (entry.compute(reals, samples(name, quality, 1), CPU) for quality in ("good", "bad"))
    assert len(good) == len(bad) == len(entry.suffixes)
    assert all(type(value) is float and np.isfinite(value) for value in (*good, *bad))
    assert is_better(name, good[0], bad[0])
    assert is_better(name, bad[0], good[0]) == (entry.higher_is_better is None)
    assert entry.compute(reals, samples(name, "good", 1), CPU) == good  # no hidden state


@pytest.mark.parametrize("name", IMAGES)
def test_features_are_used_only_if_asked_for(name: str) -> None:
    """An entry that needs no features does without; reals matter exactly where they are said to."""
    entry = METRICS[name]
    assert isinstance(entry, Metric)
    fakes, one, other = samples(name, "good", 1), samples(name, "good", 0), samples(name, "bad", 2)
    assert (fakes.features is not None) == entry.needs_features
    assert (entry.compute(one, fakes, CPU) != entry.compute(other, fakes, CPU)) == entry.uses_reals


def test_the_lineages_names_are_all_there() -> None:
    lineage = ["fid50k_full", "kid50k_full", "pr50k3_full", "ppl2_wend", "is50k", "fid50k", "kid50k", "pr50k3",
               "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend",
               "eqt50k_int", "eqt50k_frac", "eqr50k"]  # fmt: skip
    assert set(lineage) <= METRICS.keys()
    for name in lineage:
        entry = METRICS[name]
        if isinstance(entry, PathMetric):
            space, sampling = name.split("_")[1][0], name.split("_")[1][1:]
            assert (entry.path.space, entry.path.sampling) == (space, sampling)
            assert entry.path.crop == (not name.startswith("ppl2"))
        elif isinstance(entry, MotionMetric):
            assert entry.motion == {"eqr50k": "rotation"}.get(name, name.rpartition("_")[2])
        elif entry.uses_reals:
            assert entry.mirrored == (not name.endswith("_full"))
            limits = {"fid50k_full": None, "kid50k_full": 1_000_000, "pr50k3_full": 200_000}
            assert entry.max_reals == limits.get(name, 50_000)


def test_figures_go_by_whole_names() -> None:
    results = {"fid50k_full": 1.0, "fid50k": 2.0, "is50k_mean": 3.0, "is50k_std": 4.0}
    assert figures_of("fid50k", results) == {"fid50k": 2.0}
    assert figures_of("is50k", results) == {"is50k_mean": 3.0, "is50k_std": 4.0}
    assert need_reals(["is50k", "ppl2_wend"]) is False
    assert need_reals(["is50k", "fid50k"]) is True
    with pytest.raises(UserError, match="no metric 'fid'; known are fid50k_full, kid50k_full"):
        metric("fid")
    assert dataclasses.is_dataclass(metric("fid50k"))
