"""What a run shows of its EMA: image grids at fixed latents, metrics, the before/after table; what a snapshot holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.progress import PassProgress
from stylegan_di.images import save_grid, to_uint8
from stylegan_di.interfaces import Denoiser, Generator
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.table import figures_of, is_better
from stylegan_di.random import SampleRandom
from stylegan_di.runs.endings import StopRequest
from stylegan_di.runs.folder import RunFolder
from stylegan_di.sampling.heun import HeunGenerator
from stylegan_di.students import OneStepStudent
from stylegan_di.torch_utils import distributed
from stylegan_di.training.build import Job
from stylegan_di.training.report import comparison_table

GRID_COLUMNS = 10
GRID_BATCH = 16  # images at a time


class Evaluation:
    """Measures and draws the EMA of a job; only the first process does.

    Args:
        job: the training.
        folder: where pictures and tables go.
        evaluator: the metrics; None for --metrics=none.
    """

    def __init__(self, job: Job, folder: RunFolder, evaluator: Evaluator | None) -> None:
        self.job = job
        self.folder = folder
        self.evaluator = evaluator
        ema = job.state.ema
        self.resolution: int = ema.img_resolution  # type: ignore[assignment]
        self.generator = ema if isinstance(ema, Generator) else HeunGenerator(_denoiser(ema))
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_kimg = 0.0
        rows = 8 if self.resolution <= 64 else 4
        indices = range(GRID_COLUMNS * rows)
        rng = SampleRandom(job.config.seed, "grid", 0, indices, job.device)
        self._z = self.generator.sample_latents(len(indices), rng=rng)
        self._labels = self._grid_labels(len(indices))
        self._start: Tensor | None = None

    def _grid_labels(self, n: int) -> Tensor | None:
        """One class a column, as far as the columns go."""
        label_dim = self.generator.label_dim
        if label_dim == 0:
            return None
        classes = torch.arange(n, device=self.job.device) % GRID_COLUMNS % label_dim
        return torch.nn.functional.one_hot(classes, label_dim).float()

    @torch.no_grad()
    def grid_images(self) -> Tensor:
        """The EMA's images at the grid's latents, [n,C,H,W]; noise inside the network is fixed."""
        parts = []
        for start in range(0, len(self._z), GRID_BATCH):
            part = slice(start, start + GRID_BATCH)
            parts.append(self.generator(self._z[part], None if self._labels is None else self._labels[part]))
        return torch.cat(parts)

    def begin(self) -> None:
        """Grids and metrics before the first step."""
        if distributed.rank() != 0:
            return
        self._start = self.grid_images()
        save_grid(to_uint8(self._start), self.folder.grid_path(None), columns=GRID_COLUMNS)
        dataset = self.job.dataset
        if dataset is not None:
            reals = torch.stack([torch.from_numpy(dataset[i][0]) for i in range(min(len(self._z), len(dataset)))])
            save_grid(reals, self.folder.path / "reals.png", columns=GRID_COLUMNS)
        self.before, _ = self.measure(None)

    def values(self) -> dict[str, Any]:
        """What was measured so far, for a training state; the images at the start are `tensors`."""
        return {"before": self.before, "after": self.after, "best": self.best, "best_kimg": self.best_kimg}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._start is None else {"evaluation.start": self._start}

    def restore(self, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `values` and `tensors` gave."""
        self.before, self.after = values["before"], values["after"]
        self.best, self.best_kimg = values["best"], values["best_kimg"]
        self._start = tensors["evaluation.start"].to(self.job.device)

    def distance_from_start(self) -> dict[str, float]:
        """Mean absolute difference of the EMA's grid from the one before training, in [-1,1] units."""
        assert self._start is not None
        differences = (self.grid_images() - self._start).abs().mean(dim=(1, 2, 3))
        return {"num": len(differences), "mean": float(differences.mean()), "std": float(differences.std())}

    def measure(self, kimg: float | None) -> tuple[dict[str, float], bool]:
        """Metrics and grid of the EMA, and whether it is the best snapshot yet (by the first metric)."""
        if kimg is not None:
            save_grid(to_uint8(self.grid_images()), self.folder.grid_path(kimg), columns=GRID_COLUMNS)
        if self.evaluator is None:
            return {}, False
        start = time.monotonic()
        results = self.evaluator(self.generator, seed=self.job.config.seed)
        seconds = time.monotonic() - start
        name = "" if kimg is None else self.folder.snapshot_path(kimg).name
        for metric in self.job.config.metrics:
            self.folder.add_metric(metric, figures_of(metric, results), name, seconds)
        moment = "before" if kimg is None else f"kimg {kimg:g}"
        print(f"metrics {moment}: " + "  ".join(f"{k} {v:.4f}" for k, v in results.items()), flush=True)
        first = next(iter(results))
        first_metric, best = self.job.config.metrics[0], self.best.get(first)
        is_best = kimg is not None and (best is None or is_better(first_metric, results[first], best))
        if kimg is not None:
            self.after = results
        if kimg is not None and is_best:
            self.best, self.best_kimg = results, kimg
        return results, is_best

    def finish(self, seconds: float) -> dict[str, Any]:
        """The before/after grid, the table and result.json."""
        config, after = self.job.config, self.after
        result = {
            "before": self.before, "after": after, "best": self.best, "best_kimg": self.best_kimg,
            "seed": config.seed, "num_samples": config.metric_samples if self.evaluator else 0, "seconds": seconds,
            "kimg": self.job.state.cur_nimg / 1000, "device": str(self.job.device),
        }  # fmt: skip
        if distributed.rank() != 0:
            return result
        assert self._start is not None
        if config.kind == "di":
            self._save_before_after(self._start, self.grid_images())
        self.folder.write_json("result.json", result)
        if after:
            print(comparison_table(self.before, after))
            print(f"best: {next(iter(self.best))} {next(iter(self.best.values())):.4f} at kimg {self.best_kimg:g}")
        print(f"written: {self.folder.path}", flush=True)
        return result

    def _save_before_after(self, before: Tensor, after: Tensor) -> None:
        """Four rows before, a white line's gap, the same latents after."""
        n = 4 * GRID_COLUMNS
        gap = torch.ones_like(before[:GRID_COLUMNS])[:, :, : max(self.resolution // 8, 1)]
        images = [_rows(before[:n]), _rows(gap), _rows(after[:n])]
        save_grid(to_uint8(torch.cat(images, dim=1))[None], self.folder.path / "before_after.png", columns=1)

    def networks(self) -> dict[str, torch.nn.Module | None]:
        """What a snapshot holds: stylegan2-ada's four, or EDM's one."""
        state = self.job.state
        ema, model = state.ema, state.model
        if not isinstance(ema, Generator) or isinstance(ema, OneStepStudent):
            return {"ema": _network(ema)}
        pipe = state.augment_pipe
        assert pipe is None or isinstance(pipe, torch.nn.Module)
        return {
            "G": _network(model), "D": state.discriminator, "G_ema": _network(ema), "augment_pipe": pipe,
        }  # fmt: skip

    def extras(self) -> dict[str, Any]:
        """What else a snapshot holds: the data set as NVlabs describe it; sigma_init or augment_pipe where they are."""
        config, ema = self.job.config, self.job.state.ema
        dataset: dict[str, Any] = {
            "class_name": "training.dataset.ImageFolderDataset", "path": config.data, "use_labels": config.cond,
            "max_size": config.subset, "xflip": config.mirror, "resolution": self.resolution,
        }  # fmt: skip
        if isinstance(ema, OneStepStudent):
            return {"dataset_kwargs": dataset, "sigma_init": ema.sigma_init}
        if isinstance(ema, Generator):
            return {"training_set_kwargs": dataset}
        return {"dataset_kwargs": dataset, "augment_pipe": self.job.state.augment_pipe}


def make_evaluator(job: Job, reference: str | ImageDataset | None, stop: StopRequest) -> Evaluator | None:
    """The metrics of --metrics on --metric-samples samples; None where there are none.

    Where a stop is requested while it measures, it raises Interrupted.
    """
    config = job.config
    if not config.metrics or distributed.rank() != 0:
        return None
    progress = PassProgress()

    def report(label: str, done: int, total: int) -> None:
        stop.check()
        progress(label, done, total)

    return Evaluator(
        metrics=list(config.metrics),
        reference=reference,
        num_samples=config.metric_samples,
        detector_file=config.detector_file,
        device=job.device,
        report=report,
    )


def _denoiser(module: torch.nn.Module) -> Denoiser:
    assert isinstance(module, Denoiser)
    return module


def _network(module: torch.nn.Module) -> torch.nn.Module:
    network = module.network
    assert isinstance(network, torch.nn.Module)
    return network


def _rows(images: Tensor) -> Tensor:
    """[n,C,h,W] -> one image [C, n / columns * h, columns * W]."""
    n, channels, height, width = images.shape
    rows = images.view(n // GRID_COLUMNS, GRID_COLUMNS, channels, height, width)
    return rows.permute(2, 0, 3, 1, 4).reshape(channels, -1, GRID_COLUMNS * width)
