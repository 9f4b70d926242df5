"""Reads reference statistics from files.

| file | content | covariance |
|---|---|---|
| .npz | this project's statistics, or EDM's fid-refs (mu and sigma) | over N - 1 |
| .pkl | stylegan2-ada's cache of a data set (gan-metrics/*.pkl): sums, or all features | converted to N - 1 |
| .pkl | EDM2's dataset-refs: mu and sigma for FID and for DINOv2 | as it is in the file |

Pickles are read as inert data (`torch_utils.persistence`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stylegan_di import zoo
from stylegan_di.dnnlib.untrusted import Budget, open_untrusted, untrusted
from stylegan_di.dnnlib.util import UserError
from stylegan_di.labels import LabelLaw
from stylegan_di.metrics.statistics import (
    MAX_DIM,
    REMEDY,
    FeatureStats,
    checked_stats,
    load_label_counts,
    load_stats,
)
from stylegan_di.metrics.table import METRICS, Metric, metric
from stylegan_di.torch_utils.persistence import read_pickle

SUFFIXES = (".npz", ".pkl")  # suffixes of files that hold statistics

_BY_DIM = {2048: "inception", 4096: "vgg16"}  # by dimension, as stylegan2-ada's cache does not name the extractor
_EDM2_NAMES = {"fid": "inception", "fd_dinov2": "dinov2"}


def load_references(path: str | os.PathLike[str]) -> dict[str, FeatureStats]:
    """Returns the statistics in a file, by the name of their extractor.

    Raises:
        UserError: if the file is missing, damaged, or holds none.
    """
    if Path(path).suffix != ".pkl":
        stats = load_stats(path)
        return {stats.extractor or "inception": stats}  # files that do not name the extractor are EDM's
    source = os.fspath(path)
    with untrusted(source, Path(path), REMEDY), open_untrusted(path) as (file, size):
        budget = Budget(size)
        content = read_pickle(file.read(), source, budget=budget)
        if isinstance(content, dict) and "capture_all" in content:
            stats = stats_of_cache(content, budget)
            return {_BY_DIM.get(len(stats.mean), f"{len(stats.mean)}-dimensional"): stats}
        if isinstance(content, dict) and content.keys() & _EDM2_NAMES.keys():
            found = {_EDM2_NAMES[name]: entry for name, entry in content.items() if name in _EDM2_NAMES}
            return {name: checked_stats({"mu": entry["mu"], "sigma": entry["sigma"]}) for name, entry in found.items()}
        raise ValueError("it is neither stylegan2-ada's nor EDM2's")


def references_for(metrics: Iterable[str], source: str) -> dict[str, FeatureStats]:
    """Returns the statistics in a file, a path or a known name, by the name of their extractor.

    Raises:
        UserError: the file cannot be read, or has not what one of the metrics compares with.
    """
    found = load_references(zoo.resolve(source))
    for entry in map(metric, metrics):
        if isinstance(entry, Metric) and entry.uses_reals:
            picked(found, entry, source)
    return found


def picked(found: Mapping[str, FeatureStats], entry: Metric, source: str, dim: int | None = None) -> FeatureStats:
    """Returns the statistics that a metric compares with.

    Args:
        found: those in a file, by extractor.
        entry: the metric.
        source: the file, for messages.
        dim: how many features the extractor has; None where it has not been opened.

    Raises:
        UserError: the file has others, or not all that the metric needs.
    """
    stats = found.get(entry.extractor)
    if stats is None or dim not in (None, len(stats.mean)):
        held = " and ".join(f"{name} features of {len(other.mean)} dimensions" for name, other in found.items())
        wanted = f"{entry.extractor} features" + ("" if dim is None else f" of {dim}")
        compared = {name: other for name, other in METRICS.items() if isinstance(other, Metric) and other.uses_reals}
        fit = ", ".join(name for name, other in compared.items() if other.extractor in found)
        raise UserError(
            f"--ref={source} holds {held}; the metrics asked for need {wanted}: choose other --metrics"
            + (f" ({fit})" if fit else "")
            + ", or give images to compare with (a ZIP as --ref, or as --data of stylegan-di metrics)"
        )
    if entry.needs_features and stats.features is None:
        raise UserError(
            f"--ref={source} holds no features, only their mean and covariance; precision, recall and kernel distances "
            "need the features: give images to compare with (a ZIP as --ref)"
        )
    if entry.needs_labels and stats.labels is None:
        raise UserError(
            f"--ref={source} holds no labels, and recall by class needs those of the real images: give a data set that "
            "has labels (as --ref, or as --data of stylegan-di metrics), or statistics that stylegan-di reference made "
            "of one"
        )
    return stats


def label_law_of(source: str | os.PathLike[str], label_dim: int) -> LabelLaw | None:
    """How often each class is among the images of a file of statistics, a path or a known name.

    None if it does not say, or has other classes than a network of label_dim.
    """
    if Path(source).suffix != ".npz":
        return None
    counts = load_label_counts(zoo.resolve(source))
    return LabelLaw.of_counts(counts) if counts is not None and len(counts) == label_dim else None


def stats_of_cache(cache: Mapping[str, Any], budget: Budget) -> FeatureStats:
    """Converts stylegan2-ada's FeatureStats, given as its __dict__, to statistics.

    raw_mean [dim] and raw_cov [dim,dim] are sums of x and of x x^T; all_features is a list of batches of features. Each
    has values only if it was captured.

    Raises:
        Exception: of any type, if entries are missing, do not fit together, or cost more than the budget.
    """
    num, features = int(cache["num_items"]), None
    if num < 2:
        raise ValueError(f"it counts {num} images")
    if cache["capture_all"]:
        budget.spend(bytes=sum(np.asarray(batch).nbytes for batch in cache["all_features"]))
        features = np.concatenate(cache["all_features"])
        _check_dim(features.shape[1], budget)
    if cache["capture_mean_cov"]:
        total, products = (np.asarray(cache[name], dtype=np.float64) for name in ("raw_mean", "raw_cov"))
        _check_dim(total.size, budget)
    elif features is not None:
        x = features.astype(np.float64)
        total, products = x.sum(axis=0), x.T @ x
    else:
        raise ValueError("neither features nor sums were captured")
    mean = total / num
    arrays = {"mu": mean, "sigma": (products - num * np.outer(mean, mean)) / (num - 1), "num": np.asarray(num)}
    return checked_stats(arrays if features is None else arrays | {"features": features})


def _check_dim(dim: int, budget: Budget) -> None:
    """Raises an error unless a matrix [dim,dim] can be afforded."""
    if dim > MAX_DIM:
        raise ValueError(f"features of {dim} dimensions; up to {MAX_DIM} are read")
    budget.spend(bytes=8 * dim**2)
