"""Evaluates the averaged network of a run: image grids at fixed latents, metrics, the before/after table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.progress import PassProgress, format_time
from stylegan_di.images import tile, to_uint8
from stylegan_di.inputs import reference_name
from stylegan_di.journal.clock import comparison_table
from stylegan_di.journal.journal import Journal
from stylegan_di.labels import one_hot
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.table import figures_of, is_better, judge, need_reals
from stylegan_di.random import SampleRandom
from stylegan_di.runs.endings import StopRequest
from stylegan_di.runs.folder import RunFolder
from stylegan_di.torch_utils import distributed
from stylegan_di.training.methods.base import Method

GRID_COLUMNS = 10
GRID_BATCH = 16  # images at a time


class Evaluation:
    """Measures the averaged network in all processes together, and draws its images in the first one.

    There is no evaluator for --metrics=none.
    """

    def __init__(self, method: Method, folder: RunFolder, journal: Journal, evaluator: Evaluator | None) -> None:
        self.method = method
        self.config = method.config
        self.folder = folder
        self.journal = journal
        self.evaluator = evaluator
        self.generator = method.shown()
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_kimg = 0.0
        rows = 8 if self.generator.img_resolution <= 64 else 4
        indices = range(GRID_COLUMNS * rows)
        rng = SampleRandom(self.config.seed, "grid", 0, indices, method.device)
        self._z = self.generator.sample_latents(len(indices), rng=rng)
        self._labels = None
        law = self.generator.label_law
        if law.vectors is not None:
            self._labels = law.draw(rng)
        elif law.label_dim:  # a class a column, of those that occur; what is beyond the columns does not appear
            present = torch.from_numpy(law.counts).nonzero()[:, 0].to(method.device)
            columns = torch.arange(len(indices), device=method.device) % GRID_COLUMNS % len(present)
            self._labels = one_hot(present[columns], law.label_dim)
        self._start: Tensor | None = None  # the grid's images before the first step, in the first process

    def grid_images(self) -> Tensor:
        """Returns the average's images at the grid's latents, [n,C,H,W], with the network's fixed noise."""
        return self.generator.in_batches(self._z, self._labels, GRID_BATCH)

    def begin(self) -> None:
        """Draws the grids and measures the metrics before the first step, of what the student was made of."""
        student, self.generator = self.generator, self.generator.origin
        try:
            self._begin()
        finally:
            self.generator = student

    def _begin(self) -> None:
        if distributed.rank() == 0:
            self._start = self.grid_images()
            self.journal.images("fakes_init", to_uint8(self._start), GRID_COLUMNS)
            dataset = self.method.dataset
            if dataset is not None:
                reals = [torch.from_numpy(dataset[i][0]) for i in range(min(len(self._z), len(dataset)))]
                self.journal.images("reals", torch.stack(reals), GRID_COLUMNS)
        self.before, _ = self.measure(None)

    def values(self) -> dict[str, Any]:
        """Returns the results so far, for the training state; `tensors` returns the initial images."""
        return {"before": self.before, "after": self.after, "best": self.best, "best_kimg": self.best_kimg}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._start is None else {"evaluation.start": self._start}

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what `values` and `tensors` returned."""
        self.before, self.after, self.best = (dict(values[name]) for name in ("before", "after", "best"))
        self.best_kimg = values["best_kimg"]
        for figure in (*self.before.values(), *self.after.values(), *self.best.values(), self.best_kimg):
            if type(figure) not in (int, float):
                raise ValueError(f"a figure of {str(figure)[:40]}")
        if distributed.rank() == 0:
            self._start = tensors["evaluation.start"].to(self.method.device)

    def distance_from_start(self) -> dict[str, float]:
        """Returns the mean absolute difference of the average's grid from the initial one, in [-1,1] units."""
        assert self._start is not None
        differences = (self.grid_images() - self._start).abs().flatten(1).mean(dim=1)
        return {"num": len(differences), "mean": float(differences.mean()), "std": float(differences.std())}

    def measure(self, kimg: float | None) -> tuple[dict[str, float], bool]:
        """Draws and measures the average; returns the metrics and whether it is the best so far by the first metric.

        All processes must call this; kimg is None before training.
        """
        if kimg is not None and distributed.rank() == 0:
            self.journal.images(f"fakes{round(kimg):06d}", to_uint8(self.grid_images()), GRID_COLUMNS)
        if self.evaluator is None:
            return {}, False
        start = time.monotonic()
        results = self.evaluator(self.generator, seed=self.config.seed)
        self._report(results, kimg, time.monotonic() - start)
        first = next(iter(results))
        first_metric, best = self.config.metrics[0], self.best.get(first)
        is_best = kimg is not None and (best is None or is_better(first_metric, results[first], best))
        if kimg is not None:
            self.after = results
        if kimg is not None and is_best:
            self.best, self.best_kimg = results, kimg
        return results, is_best

    def _report(self, results: Mapping[str, float], kimg: float | None, seconds: float) -> None:
        """Reports a row per metric, with the same fields as stylegan2-ada's, and a line for the user."""
        name = "" if kimg is None else self.folder.snapshot_path(kimg).name
        row = {"total_time": seconds, "total_time_str": format_time(seconds), "num_gpus": distributed.world_size(),
               "snapshot_pkl": name}  # fmt: skip
        for metric in self.config.metrics:
            self.journal.table(f"metric-{metric}", {"results": figures_of(metric, results), "metric": metric} | row)
        moment = "before" if kimg is None else f"kimg {kimg:g}"
        self.journal.say(f"metrics {moment}: " + "  ".join(f"{k} {v:.4f}" for k, v in results.items()))

    def finish(self, seconds: float) -> dict[str, Any]:
        """Writes the before/after grid, the table and result.json, and returns the latter's contents."""
        config, after = self.config, self.after
        result = {
            "before": self.before, "after": after, "best": self.best, "best_kimg": self.best_kimg,
            "seed": config.seed, "num_samples": config.metric_samples if self.evaluator else 0, "seconds": seconds,
            "kimg": self.method.state.cur_nimg / 1000, "device": str(self.method.device),
        }  # fmt: skip
        if distributed.rank() != 0:
            return result
        if self.method.compares:
            assert self._start is not None
            self._draw_before_after(self._start, self.grid_images())
        self.folder.write_json("result.json", result)
        if after:
            self.journal.say(comparison_table(self.before, after))
            best = next(iter(self.best.items()))
            self.journal.say(f"best: {best[0]} {best[1]:.4f} at kimg {self.best_kimg:g}")
        self.journal.say(f"written: {self.folder.path}; open report.html in it in a browser")
        return result

    def _draw_before_after(self, before: Tensor, after: Tensor) -> None:
        """Draws four rows before training, a white gap, and the same latents after training."""
        n = 4 * GRID_COLUMNS
        gap = torch.ones_like(before[:GRID_COLUMNS])[:, :, : max(self.generator.img_resolution // 8, 1)]
        images = [tile(part, GRID_COLUMNS) for part in (before[:n], gap, after[:n])]
        self.journal.images("before_after", to_uint8(torch.cat(images, dim=1))[None], 1)


def reference_of(method: Method) -> str | ImageDataset | None:
    """Returns what metrics compare with: --ref, else a known name's reference, else all of --data despite --subset."""
    config = method.config
    if not need_reals(config.metrics):
        return None
    source = reference_name(config)
    if source is not None:
        return str(zoo.resolve(source))
    return method.dataset if config.subset is None else ImageDataset(
        config.data or "", use_labels=config.cond, xflip=config.mirror
    )


def make_glance(method: Method, reference: str | ImageDataset | None, stop: StopRequest) -> Evaluator | None:
    """Makes the evaluator by which GAN and teacher are compared before a run; None if they are not."""
    config = method.config
    name = judge(config.metrics)
    if name is None or not config.headroom_samples:
        return None
    return make_evaluator(method, reference, stop, [name], config.headroom_samples)


def make_evaluator(
    method: Method, reference: str | ImageDataset | None, stop: StopRequest, metrics: Sequence[str], samples: int
) -> Evaluator | None:
    """Makes an evaluator of metrics on so many samples in every process; None for no metrics.

    If a stop is requested while it measures, it raises Interrupted, and distributed.Abandoned in other processes.
    """
    if not metrics:
        return None
    progress = PassProgress()

    def report(label: str, done: int, total: int) -> None:
        stop.check()
        if distributed.rank() == 0:
            progress(label, done, total)

    return Evaluator(
        metrics=metrics,
        reference=reference,
        num_samples=samples,
        detector_file=method.config.detector_file,
        device=method.device,
        report=report,
    )
