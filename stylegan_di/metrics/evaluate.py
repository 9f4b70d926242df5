"""Measures generators and data sets by the metrics of the table, against one reference."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Classifier, Generator
from stylegan_di.metrics.equivariance import motion_errors, psnr
from stylegan_di.metrics.extractors import detector_files, open_extractor
from stylegan_di.metrics.features import (
    Batches,
    Report,
    batch_size,
    dataset_features,
    dataset_images,
    extract,
    generated_images,
)
from stylegan_di.metrics.path_length import path_distances, trimmed_mean
from stylegan_di.metrics.references import SUFFIXES, picked, references_for
from stylegan_di.metrics.statistics import FeatureStats
from stylegan_di.metrics.table import Metric, MotionMetric, PathMetric, metric, need_labels, need_reals
from stylegan_di.metrics.vgg16 import VGG16, load_lpips
from stylegan_di.torch_utils import distributed

Reference = str | os.PathLike[str] | ImageDataset | None

LPIPS = ("vgg16", "lpips")  # the networks of path lengths
OF_PIXELS = ("spectrum", "texture", "fashion")  # extractors that do not resize images of any size and shape
CHUNK = 1000  # features that are turned into class probabilities at a time


class Evaluator:
    """Measures generators, all against one reference. It opens what it needs when it is made, so that it fails early.

    All the processes of a run make an Evaluator with the same arguments and call it at the same time. They share the
    images, and all get the figures that one process would get, to the bit if they compute with as many threads. Where
    one of them fails, or is interrupted by `report`, all of them raise an error: see `distributed.together`. Only the
    first holds the reference and the features.

    Args:
        metrics: names in the table (`stylegan_di.metrics.table`).
        reference: statistics (an .npz or .pkl file or a known name), a data set, or the path of one; None if no
            metric compares with real images.
        num_samples: how many images a measurement generates, and how many paths for path lengths.
        batch: images in a batch, None for `batch_size` of their resolution; it affects the figures by rounding only.
        detector_file: weights of the extractors, where they are not to be downloaded (see `detector_files`).
        device: where the extractors compute, and where the generators are that will be measured.
        amp, detector_amp: the types in which generators and extractors compute images and features; None for float32.
        report: called after every round of batches with what is being done, the number of images that all processes
            have done, and of how many. It is called in every process, so that it can raise an exception in any of
            them to end the measurement; if it prints, it should do so in the first process only.

    Raises:
        UserError: for unknown metrics, and for files that are missing or do not fit.
        Abandoned: if another process was interrupted or failed unexpectedly. Calls raise it too.
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
        amp: torch.dtype | None = None,
        detector_amp: torch.dtype | None = None,
        report: Report | None = None,
    ) -> None:
        entries = {name: metric(name) for name in metrics}
        self.of_images = {name: entry for name, entry in entries.items() if isinstance(entry, Metric)}
        self.of_paths = {name: entry for name, entry in entries.items() if isinstance(entry, PathMetric)}
        self.of_motions = {name: entry for name, entry in entries.items() if isinstance(entry, MotionMetric)}
        self.metrics = tuple(entries)
        self.num_samples = num_samples
        self.batch = batch
        self.device = torch.device(device)
        self.amp = amp
        self.detector_amp = detector_amp
        if amp is not None and (self.of_paths or self.of_motions):
            names = ", ".join([*self.of_paths, *self.of_motions])
            raise UserError(f"--amp: {names} are measured in float32; leave it out")
        self.report = report
        self.keep = {entry.extractor for entry in self.of_images.values() if entry.needs_features}
        self.keep_reals = {e.extractor for e in self.of_images.values() if e.needs_features and e.uses_reals}
        self.real_size: tuple[int, int] | None = None  # width and height of the real images, where they are known
        with distributed.together():
            uses = [*dict.fromkeys(e.extractor for e in self.of_images.values()), *(LPIPS if self.of_paths else ())]
            files = detector_files(detector_file, uses)
            statistics = self._read_statistics(reference)  # those that do not fit are refused before a download
            if distributed.rank() != 0:
                distributed.meet()  # the first process downloads what is missing, and the others find it
            self._open_extractors(files)
            if distributed.rank() == 0:
                distributed.meet()
            self.references = self._open_references(reference, statistics)

    def __call__(self, generator: Generator, seed: int = 0) -> dict[str, float]:
        """Returns every figure for `num_samples` images of a generator; equal seeds mean equal latents and labels."""
        results: dict[str, float] = {}
        batch = self.batch or batch_size(max(generator.image_shape[1:]))
        with distributed.together():
            for name, entry in self.of_paths.items():
                assert self.lpips is not None
                distances = path_distances(
                    generator, self.lpips, entry.path,
                    num=self.num_samples, batch=batch, seed=seed, report=self._report("Paths", self.num_samples),
                )  # fmt: skip
                if distributed.rank() == 0:
                    results[name] = trimmed_mean(distances)
            for name, moving in self.of_motions.items():
                errors = motion_errors(
                    generator, moving.motion,
                    num=self.num_samples, batch=batch, seed=seed, report=self._report("Motions", self.num_samples),
                )  # fmt: skip
                if distributed.rank() == 0:
                    results[name] = psnr(errors)
            if self.of_images:
                self._check_alike(generator.image_shape[2], generator.image_shape[1])
                images = generated_images(
                    generator, num=self.num_samples, batch=batch, seed=seed, device=self.device, amp=self.amp
                )
                results |= self._measure(images)
        return self._in_order(_of_the_first(results))

    def measure_dataset(self, dataset: ImageDataset) -> dict[str, float]:
        """Returns every figure for the first `num_samples` images of a data set, or for all if there are fewer.

        Raises:
            UserError: if one of the metrics is a path length, which images do not have.
        """
        if self.of_paths:
            raise UserError(f"{', '.join(self.of_paths)}: path lengths are for a GAN, not for images")
        if self.of_motions:
            raise UserError(f"{', '.join(self.of_motions)}: equivariance is for a StyleGAN3, not for images")
        num = min(self.num_samples, len(dataset))
        self._check_size(dataset)
        self._check_alike(dataset.width, dataset.resolution)
        with distributed.together():
            batch = self.batch or batch_size(max(dataset.resolution, dataset.width))
            results = self._measure(dataset_images(dataset, num=num, batch=batch))
        return _of_the_first(results)

    def _measure(self, images: Batches) -> dict[str, float]:
        """The figures of the image metrics, in the first process; {} in the others."""
        if need_labels(self.metrics) and images.classes is None:
            raise UserError(f"{self._labelled()}: the images to measure have no classes; leave it out")
        extractors, report = list(self.extractors.values()), self._report("Images", images.num)
        fakes = extract(
            images, extractors, keep=self.keep, device=self.device, amp=self.detector_amp, report=report
        )
        results: dict[str, float] = {}
        if distributed.rank() != 0:
            return results
        for name, entry in self.of_images.items():
            stats = fakes[entry.extractor]
            if entry.needs_labels:
                stats = dataclasses.replace(stats, labels=images.labels())
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

    def _open_extractors(self, files: Mapping[str, str]) -> None:
        names = dict.fromkeys(entry.extractor for entry in self.of_images.values())
        self.extractors = {name: open_extractor(name, files.get(name)).to(self.device) for name in names}
        for extractor in {entry.extractor for entry in self.of_images.values() if entry.of_classes}:
            classifier = self.extractors[extractor]
            assert isinstance(classifier, Classifier)
            # If it has no probabilities, this fails now instead of after the images have been made.
            classifier.probabilities(torch.zeros([1, classifier.dim], device=self.device))
        self.lpips = None
        if self.of_paths:
            vgg = self.extractors.get("vgg16") or open_extractor("vgg16", files.get("vgg16"))
            assert isinstance(vgg, VGG16)
            self.lpips = load_lpips(vgg, files.get("lpips")).to(self.device)

    def _read_statistics(self, reference: Reference) -> dict[str, FeatureStats] | None:
        """A file's statistics, by extractor, in the first process, {} in the others; None where it is no such file."""
        if reference is None or isinstance(reference, ImageDataset) or Path(reference).suffix not in SUFFIXES:
            return None
        if distributed.rank() != 0 or not need_reals(self.metrics):
            return {}
        return references_for(self.metrics, os.fspath(reference))

    def _open_references(
        self, reference: Reference, statistics: Mapping[str, FeatureStats] | None
    ) -> dict[str, FeatureStats]:
        """The statistics that each metric compares with, by its name, in the first process; {} in the others.

        statistics: those of a file, as `_read_statistics` returns them.
        """
        entries = {name: entry for name, entry in self.of_images.items() if entry.uses_reals}
        if not need_reals(self.metrics):
            return {}
        if reference is None:
            raise UserError(f"{', '.join(entries)}: there is nothing to compare with; give --data or --ref")
        if statistics is not None and not isinstance(reference, ImageDataset):
            if distributed.rank() != 0:
                return {}
            source = os.fspath(reference)
            dims = {name: self.extractors[entry.extractor].dim for name, entry in entries.items()}
            return {name: picked(statistics, entry, source, dims[name]) for name, entry in entries.items()}
        labels = need_labels(self.metrics)
        dataset = reference if isinstance(reference, ImageDataset) else ImageDataset(reference, use_labels=labels)
        if labels and not dataset.has_labels:
            raise UserError(f"{self._labelled()}: {dataset.name} was opened without its labels (--cond); leave it out")
        self._check_size(dataset)
        self.real_size = dataset.width, dataset.resolution
        stats = {name: self._dataset_features(dataset, entry) for name, entry in entries.items()}
        return {name: found for name, found in stats.items() if found is not None}

    def _dataset_features(self, dataset: ImageDataset, entry: Metric) -> FeatureStats | None:
        num = len(dataset) if entry.mirrored else dataset.num_plain
        num = num if entry.max_reals is None else min(num, entry.max_reals)
        batch = self.batch or batch_size(max(dataset.resolution, dataset.width))
        stats = dataset_features(
            dataset,
            self.extractors[entry.extractor],
            num=num,
            keep_features=entry.extractor in self.keep_reals,
            batch=batch,
            device=self.device,
            amp=self.detector_amp,
            report=self.report,
        )
        if stats is None or not entry.needs_labels:
            return stats
        return dataclasses.replace(stats, labels=dataset_images(dataset, num=num, batch=batch).labels())

    def _check_size(self, dataset: ImageDataset) -> None:
        """Raises UserError for images of any size and a metric that looks at the pixels themselves."""
        wrong = [name for name, entry in self.of_images.items() if entry.extractor in OF_PIXELS]
        if dataset.any_size and wrong:
            raise UserError(f"--any-size: {', '.join(wrong)} does not resize images: leave it out")

    def _check_alike(self, width: int, height: int) -> None:
        """Raises UserError for spectra of images of another size than the real ones'."""
        if "spectrum" in self.metrics and self.real_size not in (None, (width, height)):
            real = "{}x{}".format(*self.real_size or ())
            raise UserError(
                f"spectrum: images of {width}x{height} pixels cannot be compared with real ones of {real}; give real "
                f"images of their size (stylegan-di dataset --resolution={width}x{height})"
            )

    def _labelled(self) -> str:
        """The metrics that need labels, for a message."""
        return ", ".join(name for name, entry in self.of_images.items() if entry.needs_labels)


def _of_the_first(results: Mapping[str, float]) -> dict[str, float]:
    """The first process's results, in every process."""
    return json.loads(distributed.broadcast_string(json.dumps(results)))


def mean_and_spread(blocks: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the mean and standard deviation (over N - 1; 0 for one block) of every figure over several blocks."""
    values = {name: [block[name] for block in blocks] for name in blocks[0]}
    mean = {name: statistics.fmean(figures) for name, figures in values.items()}
    spread = {name: statistics.stdev(figures) if len(figures) > 1 else 0.0 for name, figures in values.items()}
    return mean, spread
