"""The table of metrics: which features of how many images each uses, and what it estimates (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from stylegan_di.dnnlib.util import UserError, did_you_mean
from stylegan_di.metrics.equivariance import Motion
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception_score import inception_score
from stylegan_di.metrics.kernel_distance import kernel_distance
from stylegan_di.metrics.manifolds import class_recall, density_coverage, precision_recall
from stylegan_di.metrics.path_length import Path
from stylegan_di.metrics.spectrum import BANDS, band_ratios
from stylegan_di.metrics.statistics import FeatureStats


@dataclass(frozen=True)
class Metric:
    """One entry of the table.

    `extractor` names the features. `compute(reals, fakes, device)` gives one figure, or several, whose names are the
    metric's with the `suffixes`; it does slow computations on the device.
    The metric compares with the first `max_reals` real images (None: all), and with their mirrored copies too if they
    are `mirrored`, or with none unless it `uses_reals`. If it `needs_features`, mean and covariance are not enough; if
    it `needs_labels`, it wants the images' classes too. If it is `of_classes`, its features are the class probabilities
    that a classifier gives. `higher_is_better` is about the first figure; None: the metric does not judge.
    """

    extractor: str
    compute: Callable[[FeatureStats, FeatureStats, torch.device], tuple[float, ...]]
    suffixes: tuple[str, ...] = ("",)
    max_reals: int | None = None
    mirrored: bool = False
    uses_reals: bool = True
    needs_features: bool = False
    needs_labels: bool = False
    of_classes: bool = False
    higher_is_better: bool | None = False


@dataclass(frozen=True)
class PathMetric:
    """An entry that measures paths through a GAN's latent space instead of comparing images with real ones."""

    path: Path
    suffixes: tuple[str, ...] = ("",)
    uses_reals: bool = False
    higher_is_better: bool = False


@dataclass(frozen=True)
class MotionMetric:
    """An entry that measures how exactly a StyleGAN3's picture moves instead of comparing images with real ones."""

    motion: Motion
    suffixes: tuple[str, ...] = ("",)
    uses_reals: bool = False
    higher_is_better: bool = True


def _frechet(reals: FeatureStats, fakes: FeatureStats, _device: torch.device) -> tuple[float]:
    return (frechet_distance(fakes.mean, fakes.covariance(ddof=1), reals.mean, reals.covariance(ddof=1)),)


def _kernel(reals: FeatureStats, fakes: FeatureStats, _device: torch.device) -> tuple[float]:
    return (kernel_distance(_features(reals), _features(fakes)),)


def _precision_recall(reals: FeatureStats, fakes: FeatureStats, device: torch.device) -> tuple[float, float]:
    return precision_recall(_on(device, reals), _on(device, fakes), k=3)


def _density_coverage(reals: FeatureStats, fakes: FeatureStats, device: torch.device) -> tuple[float, float]:
    return density_coverage(_on(device, reals), _on(device, fakes), k=5)


def _class_recall(reals: FeatureStats, fakes: FeatureStats, device: torch.device) -> tuple[float, float]:
    assert reals.labels is not None
    assert fakes.labels is not None
    return class_recall(_on(device, reals), reals.labels, _on(device, fakes), fakes.labels, k=3)


def _features(stats: FeatureStats) -> np.ndarray:
    assert stats.features is not None
    return stats.features.astype(np.float32)


def _on(device: torch.device, stats: FeatureStats) -> torch.Tensor:
    return torch.from_numpy(_features(stats)).to(device)


_PR_NAMES = ("_precision", "_recall")
_DC_NAMES = ("_density", "_coverage")
# fmt: off
METRICS: dict[str, Metric | PathMetric | MotionMetric] = {
    "fid50k_full":   Metric("inception", _frechet),
    "kid50k_full":   Metric("inception", _kernel, max_reals=1_000_000, needs_features=True),
    "pr50k3_full":   Metric("vgg16", _precision_recall, _PR_NAMES, max_reals=200_000, needs_features=True,
                            higher_is_better=True),
    "is50k":         Metric("inception", lambda _reals, fakes, _device: inception_score(_features(fakes), splits=10),
                            ("_mean", "_std"), uses_reals=False, needs_features=True, of_classes=True,
                            higher_is_better=True),
    "ppl2_wend":     PathMetric(Path("w", "end", crop=False)),
    "eqt50k_int":    MotionMetric("int"),
    "eqt50k_frac":   MotionMetric("frac"),
    "eqr50k":        MotionMetric("rotation"),
    "fid50k":        Metric("inception", _frechet, max_reals=50_000, mirrored=True),
    "kid50k":        Metric("inception", _kernel, max_reals=50_000, mirrored=True, needs_features=True),
    "pr50k3":        Metric("vgg16", _precision_recall, _PR_NAMES, max_reals=50_000, mirrored=True,
                            needs_features=True, higher_is_better=True),
    "ppl_zfull":     PathMetric(Path("z", "full", crop=True)),
    "ppl_wfull":     PathMetric(Path("w", "full", crop=True)),
    "ppl_zend":      PathMetric(Path("z", "end", crop=True)),
    "ppl_wend":      PathMetric(Path("w", "end", crop=True)),
    "fd_dinov2":     Metric("dinov2", _frechet),
    "fd_fashion":    Metric("fashion", _frechet),
    "pr_fashion":    Metric("fashion", _precision_recall, _PR_NAMES, needs_features=True, higher_is_better=True),
    "kid_fashion":   Metric("fashion", _kernel, needs_features=True),
    "dc_fashion":    Metric("fashion", _density_coverage, _DC_NAMES, needs_features=True, higher_is_better=True),
    "cr_fashion":    Metric("fashion", _class_recall, ("_mean", "_min"), needs_features=True, needs_labels=True,
                            higher_is_better=True),
    "fd_effnet":     Metric("efficientnet_lite0", _frechet),
    "pr_effnet":     Metric("efficientnet_lite0", _precision_recall, _PR_NAMES, needs_features=True,
                            higher_is_better=True),
    "kid_effnet":    Metric("efficientnet_lite0", _kernel, needs_features=True),
    "dc_effnet":     Metric("efficientnet_lite0", _density_coverage, _DC_NAMES, needs_features=True,
                            higher_is_better=True),
    "spectrum":      Metric("spectrum", lambda reals, fakes, _device: band_ratios(reals.mean, fakes.mean),
                            ("_worst", *(f"_{band + 1}" for band in range(len(BANDS))))),
    "texture":       Metric("texture", lambda _reals, fakes, _device: tuple(fakes.mean.tolist()), ("_detail", "_black"),
                            uses_reals=False, higher_is_better=None),
}
# fmt: on


def metric(name: str) -> Metric | PathMetric | MotionMetric:
    """Returns the entry with this name.

    Raises:
        UserError: if there is none.
    """
    if name not in METRICS:
        hint = did_you_mean(name, METRICS)
        raise UserError(f"--metrics: there is no metric {name!r}; known are {', '.join(METRICS)}{hint}")
    return METRICS[name]


def figures_of(name: str, results: Mapping[str, float]) -> dict[str, float]:
    return {name + suffix: results[name + suffix] for suffix in metric(name).suffixes}


def need_reals(names: Iterable[str]) -> bool:
    return any(metric(name).uses_reals for name in names)


def need_labels(names: Iterable[str]) -> bool:
    return any(isinstance(entry, Metric) and entry.needs_labels for entry in map(metric, names))


def judge(names: Iterable[str]) -> str | None:
    """The first metric that tells better images from worse by the images alone; None if there is none."""
    entries = {name: metric(name) for name in names}
    able = (
        name for name, entry in entries.items()
        if isinstance(entry, Metric) and entry.higher_is_better is not None and not entry.needs_labels
    )  # fmt: skip
    return next(able, None)


def is_better(name: str, new: float, old: float) -> bool:
    """Whether the first figure of a metric is better than an older one; true where the metric does not judge."""
    higher = metric(name).higher_is_better
    return higher is None or (new > old if higher else new < old)
