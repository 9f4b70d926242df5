"""Measures generators and data sets, each metric of the table against one reference."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Classifier, FeatureExtractor, Generator
from stylegan_di.metrics.extractors import detector_files, open_extractor
from stylegan_di.metrics.features import (
    Report,
    batch_size,
    dataset_features,
    dataset_images,
    extract,
    generated_images,
)
from stylegan_di.metrics.path_length import path_distances, trimmed_mean
from stylegan_di.metrics.references import SUFFIXES, load_references
from stylegan_di.metrics.statistics import FeatureStats
from stylegan_di.metrics.table import Metric, PathMetric, metric, need_reals
from stylegan_di.metrics.vgg16 import VGG16, load_lpips

CHUNK = 1000  # features at a time, for class probabilities


class Evaluator:
    """Measures generators, all against one reference. What it needs is opened when it is made, so that it fails early.

    Args:
        metrics: names in the table (`stylegan_di.metrics.table`).
        reference: statistics (an .npz or .pkl file or a known name), a data set, or the path of one; None where no
            metric compares with real images.
        num_samples: images to generate for a measurement, and paths for path lengths.
        batch: images at a time, None for `batch_size` of their resolution; it changes nothing but the rounding.
        detector_file: weights of the extractors, where they are not to be downloaded (see `detector_files`).
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
        batch: int | None = None,
        detector_file: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        report: Report | None = None,
    ) -> None:
        entries = {name: metric(name) for name in metrics}
        self.of_images = {name: entry for name, entry in entries.items() if isinstance(entry, Metric)}
        self.of_paths = {name: entry for name, entry in entries.items() if isinstance(entry, PathMetric)}
        self.metrics = tuple(entries)
        self.num_samples = num_samples
        self.batch = batch
        self.device = torch.device(device)
        self.report = report
        self.keep = {entry.extractor for entry in self.of_images.values() if entry.needs_features}
        self.keep_reals = {e.extractor for e in self.of_images.values() if e.needs_features and e.uses_reals}
        self._open_extractors(detector_file)
        self.references = self._open_references(reference)

    def __call__(self, generator: Generator, seed: int = 0) -> dict[str, float]:
        """Every figure for `num_samples` images of a generator; equal seeds mean equal latents and labels."""
        results = {}
        batch = self.batch or batch_size(generator.img_resolution)
        for name, entry in self.of_paths.items():
            assert self.lpips is not None
            distances = path_distances(
                generator, self.lpips, entry.path,
                num=self.num_samples, batch=batch, seed=seed, report=self._report("Paths", self.num_samples),
            )  # fmt: skip
            results[name] = trimmed_mean(distances)
        if self.of_images:
            images = generated_images(generator, num=self.num_samples, batch=batch, seed=seed, device=self.device)
            results |= self._measure(images, self.num_samples)
        return self._in_order(results)

    def measure_dataset(self, dataset: ImageDataset) -> dict[str, float]:
        """Every figure for the first `num_samples` images of a data set, or for all if there are fewer.

        Raises:
            UserError: for path lengths, which images do not have.
        """
        if self.of_paths:
            raise UserError(f"{', '.join(self.of_paths)}: path lengths are for a GAN, not for images")
        num = min(self.num_samples, len(dataset))
        batch = self.batch or batch_size(dataset.resolution)
        return self._measure(dataset_images(dataset, num=num, batch=batch), num)

    def _measure(self, images: Iterable[Tensor], num: int) -> dict[str, float]:
        extractors = list(self.extractors.values())
        fakes = extract(images, extractors, keep=self.keep, device=self.device, report=self._report("Images", num))
        results: dict[str, float] = {}
        for name, entry in self.of_images.items():
            stats = fakes[entry.extractor]
            if entry.of_classes:
                stats = self._class_probabilities(entry.extractor, stats)
            figures = entry.compute(self.references.get(name, stats), stats, self.device)
            results |= {name + suffix: value for suffix, value in zip(entry.suffixes, figures, strict=True)}
        return results

    @torch.no_grad()
    def _class_probabilities(self, extractor: str, stats: FeatureStats) -> FeatureStats:
        classifier = self.extractors[extractor]
        assert isinstance(classifier, Classifier)
        assert stats.features is not None
        chunks = torch.from_numpy(stats.features).split(CHUNK)
        probabilities = torch.cat([classifier.probabilities(chunk.to(self.device)).cpu() for chunk in chunks])
        return dataclasses.replace(stats, features=probabilities.numpy())

    def _in_order(self, results: Mapping[str, float]) -> dict[str, float]:
        return {name + suffix: results[name + suffix] for name in self.metrics for suffix in metric(name).suffixes}

    def _report(self, label: str, total: int) -> Callable[[int], None] | None:
        report = self.report
        return None if report is None else lambda done: report(label, done, total)

    def _open_extractors(self, detector_file: str | os.PathLike[str] | None) -> None:
        names = list(dict.fromkeys(entry.extractor for entry in self.of_images.values()))
        uses = [*names, *(["vgg16", "lpips"] if self.of_paths else [])]
        files = detector_files(detector_file, uses)
        self.extractors = {name: open_extractor(name, files.get(name)).to(self.device) for name in names}
        for extractor in {entry.extractor for entry in self.of_images.values() if entry.of_classes}:
            classifier = self.extractors[extractor]
            assert isinstance(classifier, Classifier)
            classifier.probabilities(torch.zeros([1, classifier.dim], device=self.device))  # or fails before the images
        self.lpips = None
        if self.of_paths:
            vgg = self.extractors.get("vgg16") or open_extractor("vgg16", files.get("vgg16"))
            assert isinstance(vgg, VGG16)
            self.lpips = load_lpips(vgg, files.get("lpips")).to(self.device)

    def _open_references(self, reference: str | os.PathLike[str] | ImageDataset | None) -> dict[str, FeatureStats]:
        """The statistics that each metric compares with, by its name."""
        entries = {name: entry for name, entry in self.of_images.items() if entry.uses_reals}
        if not need_reals(self.metrics):
            return {}
        if reference is None:
            raise UserError(f"{', '.join(entries)}: there is nothing to compare with; give --data or --ref")
        if not isinstance(reference, ImageDataset) and Path(reference).suffix in SUFFIXES:
            found = load_references(zoo.resolve(reference))
            source = os.fspath(reference)
            return {name: _pick(found, self.extractors[e.extractor], e, source) for name, e in entries.items()}
        dataset = reference if isinstance(reference, ImageDataset) else ImageDataset(reference)
        return {name: self._dataset_features(dataset, entry) for name, entry in entries.items()}

    def _dataset_features(self, dataset: ImageDataset, entry: Metric) -> FeatureStats:
        num = len(dataset) if entry.mirrored else dataset.num_plain
        return dataset_features(
            dataset,
            self.extractors[entry.extractor],
            num=num if entry.max_reals is None else min(num, entry.max_reals),
            keep_features=entry.extractor in self.keep_reals,
            batch=self.batch or batch_size(dataset.resolution),
            device=self.device,
            report=self.report,
        )


def mean_and_spread(blocks: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (over N - 1; 0 for one block) of every figure over several measurements."""
    values = {name: [block[name] for block in blocks] for name in blocks[0]}
    mean = {name: statistics.fmean(figures) for name, figures in values.items()}
    spread = {name: statistics.stdev(figures) if len(figures) > 1 else 0.0 for name, figures in values.items()}
    return mean, spread


def _pick(found: Mapping[str, FeatureStats], extractor: FeatureExtractor, entry: Metric, source: str) -> FeatureStats:
    """The statistics of the extractor's features among those of a file."""
    stats = found.get(extractor.name)
    if stats is None or len(stats.mean) != extractor.dim:
        held = " and ".join(f"{name} features of {len(other.mean)} dimensions" for name, other in found.items())
        raise UserError(
            f"--ref={source} holds {held}; the metrics asked for need {extractor.name} features of {extractor.dim}: "
            "choose other --metrics, or give images to compare with (a ZIP as --ref, or --data of calc_metrics.py)"
        )
    if entry.needs_features and stats.features is None:
        raise UserError(
            f"--ref={source} holds no features, only their mean and covariance, which will not do for "
            "precision, recall and kernel distances; give images to compare with (a ZIP as --ref)"
        )
    return stats
