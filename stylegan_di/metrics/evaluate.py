"""The table of metrics, and what measures a generator or a data set against a reference.

| metric | features | what |
|---|---|---|
| fid50k_full | Inception-2015 | Frechet distance, covariances over N - 1 (EDM's convention); meant for 50,000 samples |
| fd_fashion | Fashion classifier | the same distance in other features: no FID, and comparable only with itself |
| pr_fashion | Fashion classifier | improved precision and recall, k = 3 |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from stylegan_di import zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import Report, dataset_features, dataset_images, extract, generated_images
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.precision_recall import precision_recall
from stylegan_di.metrics.statistics import FeatureStats, load_stats


@dataclass(frozen=True)
class Metric:
    """One entry of the table.

    `extractor` names the features; `needs_features`: their mean and covariance do not do; `compute(reals, fakes)` gives
    one figure, or several, whose names are the metric's with the `suffixes`.
    """

    extractor: str
    compute: Callable[[FeatureStats, FeatureStats], tuple[float, ...]]
    suffixes: tuple[str, ...] = ("",)
    needs_features: bool = False


def _distance(reals: FeatureStats, fakes: FeatureStats) -> tuple[float]:
    return (frechet_distance(fakes.mean, fakes.covariance(ddof=1), reals.mean, reals.covariance(ddof=1)),)


def _precision_recall(reals: FeatureStats, fakes: FeatureStats) -> tuple[float, float]:
    def features(stats: FeatureStats) -> Tensor:
        assert stats.features is not None
        return torch.from_numpy(stats.features.astype(np.float32))

    return precision_recall(features(reals), features(fakes), k=3)


METRICS = {
    "fid50k_full": Metric("inception", _distance),
    "fd_fashion": Metric("fashion", _distance),
    "pr_fashion": Metric("fashion", _precision_recall, ("_precision", "_recall"), needs_features=True),
}


class Evaluator:
    """Measures generators, all against one reference. What it needs is opened when it is made, so that it fails early.

    Args:
        metrics: names in METRICS.
        reference: statistics (an .npz file or a known name), a data set, or the path of one.
        num_samples: images to generate for a measurement.
        batch: images at a time; it changes nothing but the rounding.
        detector_file: Inception's weights, where they are not to be downloaded.
        device: of the extractors, and of the generators that will be measured.
        report: told how far a pass over images has come.

    Raises:
        UserError: for unknown metrics, and for files that are missing or do not fit.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        reference: str | os.PathLike[str] | ImageDataset | None,
        num_samples: int = 50000,
        *,
        batch: int = 64,
        detector_file: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        report: Report | None = None,
    ) -> None:
        self.metrics = {name: _metric(name) for name in metrics}
        self.num_samples = num_samples
        self.batch = batch
        self.device = torch.device(device)
        self.report = report
        names = dict.fromkeys(metric.extractor for metric in self.metrics.values())
        if detector_file is not None and "inception" not in names:
            raise UserError(f"--detector-file={detector_file} is Inception, which {', '.join(metrics)} does not use")
        self.keep = {metric.extractor for metric in self.metrics.values() if metric.needs_features}
        self.extractors = [
            open_extractor(name, detector_file if name == "inception" else None).to(self.device) for name in names
        ]
        self.reference = self._open_reference(reference)

    def __call__(self, generator: Generator, seed: int = 0) -> dict[str, float]:
        """Every figure for `num_samples` images of a generator; equal seeds mean equal latents and labels."""
        images = generated_images(generator, num=self.num_samples, batch=self.batch, seed=seed, device=self.device)
        return self._measure(images, self.num_samples)

    def measure_dataset(self, dataset: ImageDataset) -> dict[str, float]:
        """Every figure for the first `num_samples` images of a data set, or for all if there are fewer."""
        num = min(self.num_samples, len(dataset))
        return self._measure(dataset_images(dataset, num=num, batch=self.batch), num)

    def _measure(self, images: Iterable[Tensor], num: int) -> dict[str, float]:
        report = self.report
        fakes = extract(
            images,
            self.extractors,
            keep=self.keep,
            device=self.device,
            report=None if report is None else lambda done: report("Images", done, num),
        )
        results: dict[str, float] = {}
        for name, metric in self.metrics.items():
            figures = metric.compute(self.reference[metric.extractor], fakes[metric.extractor])
            results |= {name + suffix: value for suffix, value in zip(metric.suffixes, figures, strict=True)}
        return results

    def _open_reference(self, reference: str | os.PathLike[str] | ImageDataset | None) -> dict[str, FeatureStats]:
        if reference is None:
            raise UserError(f"{', '.join(self.metrics)}: there is nothing to compare with; give --data or --ref")
        if not isinstance(reference, ImageDataset) and Path(reference).suffix == ".npz":
            stats = load_stats(zoo.resolve(reference))
            for extractor in self.extractors:
                _check_reference(stats, extractor, extractor.name in self.keep, os.fspath(reference))
            return {extractor.name: stats for extractor in self.extractors}
        dataset = reference if isinstance(reference, ImageDataset) else ImageDataset(reference)
        return {
            extractor.name: dataset_features(
                dataset,
                extractor,
                keep_features=extractor.name in self.keep,
                batch=self.batch,
                device=self.device,
                report=self.report,
            )
            for extractor in self.extractors
        }


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise UserError(f"--metrics: there is no metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name]


def _check_reference(stats: FeatureStats, extractor: FeatureExtractor, needs_features: bool, source: str) -> None:
    """Refuses statistics of other features than the extractor's. Files that do not say whose are EDM's: Inception's."""
    origin = stats.extractor or "inception"
    if (origin, len(stats.mean)) != (extractor.name, extractor.dim):
        raise UserError(
            f"--ref={source} holds {origin} features of {len(stats.mean)} dimensions; the metrics asked for need "
            f"{extractor.name} features of {extractor.dim}: choose other --metrics, or give --data"
        )
    if needs_features and stats.features is None:
        raise UserError(f"--ref={source} holds no features, only their mean and covariance; precision needs --data")
