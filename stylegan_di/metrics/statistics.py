"""Statistics of features: their number, mean and covariance and, if a metric needs them, the features themselves.

Sums are kept in float64. Covariances are divided by N - 1, as in EDM's reference files (fid-refs);
`FeatureStats.covariance(ddof=0)` divides by N, as stylegan2-ada-pytorch does.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.untrusted import Budget, open_untrusted, untrusted
from stylegan_di.dnnlib.util import UserError, atomic_file
from stylegan_di.torch_utils.precision import as_float64

MAX_DIM = 1 << 13  # largest dimension of features that is read from a file
MAX_MAGNITUDE = 1e6  # of a mean; a variance may be its square
ROUNDING = 1e-4  # how far below 0 an eigenvalue may be, relative to the largest variance; files may be in float32
REMEDY = "Reference statistics are an .npz file with mu and sigma; make one with stylegan-di reference."

_ARRAYS = ("mu", "sigma", "num", "extractor", "features", "labels")  # what a file of statistics may hold


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one extractor's features over a set of images.

    `mean` is float64 [dim], `cov` float64 [dim,dim], divided by N - 1. `num` is the number of images and `extractor` a
    name; either is None if a file does not tell. `features` is floating-point [num,dim], None if they were not kept.
    `labels` is the class of each image, int64 [num] from 0 on, None if it is not known.
    """

    mean: np.ndarray
    cov: np.ndarray
    num: int | None = None
    extractor: str | None = None
    features: np.ndarray | None = None
    labels: np.ndarray | None = None

    def covariance(self, ddof: int) -> np.ndarray:
        """The covariance divided by N - ddof; ddof is 1 in EDM and 0 in stylegan2-ada-pytorch.

        Raises:
            ValueError: if the divisor is not N - 1, and N is not known.
        """
        if ddof == 1:
            return self.cov
        if self.num is None:
            raise ValueError(f"covariance over N - {ddof}: the number of images is not known")
        return self.cov * ((self.num - 1) / (self.num - ddof))


class FeatureSums:
    """Sums features batch by batch, on the device on which they are, or on the CPU if that has no float64.

    Args:
        dim: dimension of the features.
        keep_features: whether to keep the features themselves too, as float32 on the CPU.
    """

    def __init__(self, dim: int, *, keep_features: bool = False) -> None:
        self.num = 0
        self._sum = torch.zeros([dim], dtype=torch.float64)
        self._products = torch.zeros([dim, dim], dtype=torch.float64)
        self._kept: list[Tensor] | None = [] if keep_features else None

    def append(self, features: Tensor) -> None:
        """Adds a batch of features [B,dim]."""
        x = as_float64(features)
        self._sum = self._sum.to(x.device) + x.sum(dim=0)
        self._products = self._products.to(x.device).addmm_(x.T, x)
        self.num += len(x)
        if self._kept is not None:
            self._kept.append(features.to("cpu", torch.float32))

    def finish(self, *, extractor: str | None = None) -> FeatureStats:
        """The statistics of all features so far, at least two; they record the extractor's name."""
        if self.num < 2:
            raise UserError(f"{self.num} image(s) to measure; a covariance needs at least 2, and a good one thousands.")
        mean = self._sum / self.num
        cov = (self._products - self.num * torch.outer(mean, mean)) / (self.num - 1)
        kept = None if self._kept is None else torch.cat(self._kept).numpy()
        return FeatureStats(mean.cpu().numpy(), cov.cpu().numpy(), self.num, extractor, kept)


def save_stats(
    path: str | os.PathLike[str], stats: FeatureStats, extra: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes statistics to an .npz file, atomically: mu and sigma as in EDM's fid-refs, and what else they hold.

    Args:
        extra: further arrays to put into the file; `load_stats` ignores them.
    """
    values = {"mu": stats.mean, "sigma": stats.cov, "num": stats.num, "extractor": stats.extractor}
    values |= {"features": stats.features, "labels": stats.labels} | dict(extra or {})
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_stats(path: str | os.PathLike[str]) -> FeatureStats:
    """Reads statistics that `save_stats` wrote, or one of EDM's files with mu and sigma alone.

    Raises:
        UserError: if the file is missing or damaged, or its arrays do not fit together or are not finite.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; reference statistics are an .npz file with mu and sigma.")
    with untrusted(os.fspath(path), remedy=REMEDY), open_untrusted(path) as (file, size):
        return checked_stats(read_npz(file, _ARRAYS, Budget(size)))


def load_label_counts(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Returns how many images of each class, int64 [classes], a file of statistics was made of; None if it is not said.

    Raises:
        UserError: if the file is damaged.
    """
    with untrusted(os.fspath(path), remedy=REMEDY), open_untrusted(path) as (file, size):
        counts = read_npz(file, ["label_counts"], Budget(size)).get("label_counts")
        if counts is None:
            return None
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min() < 0 or not 0 < counts.sum() < 1 << 40:
            raise ValueError(f"label_counts are {counts.dtype} {list(counts.shape)}, not numbers of images")
        return counts.astype(np.int64)


def read_npz(file: IO[bytes], names: Collection[str] | None, budget: Budget) -> dict[str, np.ndarray]:
    """Reads arrays, those of `names` that are there or for None all, from an .npz file from outside.

    Raises:
        Exception: of any type, for a file that is damaged, holds objects, or unpacks to more than its budget allows.
    """
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
    wanted = [name for name in sizes if names is None or name in names]
    budget.spend(bytes=sum(sizes[name] for name in wanted), tensors=len(wanted))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:  # an object array, hence a pickle, raises ValueError
        return {name: arrays[name] for name in wanted}


def checked_stats(arrays: Mapping[str, np.ndarray]) -> FeatureStats:
    """Makes statistics of arrays named as in an .npz file.

    Raises:
        ValueError: if they do not fit together or are not finite.
    """
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    kinds = {name: arrays[name].dtype for name in ("mu", "sigma")}
    if any(dtype.kind not in "fiu" for dtype in kinds.values()):
        raise ValueError(f"mu and sigma are {kinds['mu']} and {kinds['sigma']}, not numbers")
    mean, cov = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    dim = mean.size
    if mean.ndim != 1 or cov.shape != (dim, dim) or not 0 < dim <= MAX_DIM:
        raise ValueError(f"mu and sigma have the shapes {list(mean.shape)} and {list(cov.shape)}")
    num = _plausible_num(arrays["num"]) if "num" in arrays else None
    features = arrays.get("features")
    if features is not None and (features.shape != (num, dim) or features.dtype.kind != "f"):
        raise ValueError(f"features are {features.dtype} {list(features.shape)}, not floats [{num}, {dim}]")
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != (num,) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, not class indices [{num}]")
    for name, values in (("mu", mean), ("sigma", cov), ("features", features)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    if not np.abs(mean).max() <= MAX_MAGNITUDE or not np.abs(cov).max() <= MAX_MAGNITUDE**2:
        raise ValueError(f"mu or sigma holds numbers beyond {MAX_MAGNITUDE:g} and its square, as no features have")
    _check_covariance(cov)
    extractor = str(arrays["extractor"])[:100] if "extractor" in arrays else None
    return FeatureStats(mean, cov, num, extractor, features, None if labels is None else labels.astype(np.int64))


def _plausible_num(value: np.ndarray) -> int:
    """Returns the number of images; raises ValueError unless it can be one."""
    if value.shape != () or value.dtype.kind not in "iu" or not 2 <= int(value) <= 1 << 40:
        raise ValueError(f"num is {str(value)[:40]}, not a number of images from 2 on")
    return int(value)


def _check_covariance(cov: np.ndarray) -> None:
    """Raises ValueError unless a matrix is, to rounding, symmetric and positive semidefinite."""
    largest = max(float(cov.diagonal().max()), 0.0)
    if np.abs(cov - cov.T).max() > ROUNDING * largest:
        raise ValueError("sigma is not symmetric")
    try:
        np.linalg.cholesky(cov + np.eye(len(cov)) * (ROUNDING * largest + np.finfo(np.float64).tiny))
    except np.linalg.LinAlgError:
        raise ValueError("sigma is no covariance: it has negative eigenvalues") from None
