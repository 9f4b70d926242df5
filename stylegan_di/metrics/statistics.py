"""Statistics of features: number, mean, covariance and, where a metric needs them, the features themselves.

Sums are kept in float64. Covariances are divided by N - 1, as EDM's reference files (fid-refs) have it;
stylegan2-ada-pytorch divides by N, which `FeatureStats.covariance(ddof=0)` gives.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError, atomic_file

MAX_DIM = 1 << 14  # of features in a file

# What numpy and zipfile raise on files that are not what they seem; ValueError also for the checks of our own.
_DAMAGED = (ValueError, TypeError, OSError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one extractor's features over a set of images.

    `mean` float64 [dim]; `cov` float64 [dim,dim], divided by N - 1; `num` images (None: a file that does not say);
    `extractor` its name (None: likewise); `features` [num,dim] floating-point, None where they were not kept.
    """

    mean: np.ndarray
    cov: np.ndarray
    num: int | None = None
    extractor: str | None = None
    features: np.ndarray | None = None

    def covariance(self, ddof: int) -> np.ndarray:
        """The covariance divided by N - ddof: 1 as EDM, 0 as stylegan2-ada-pytorch.

        Raises:
            ValueError: for another divisor than N - 1 where N is not known.
        """
        if ddof == 1:
            return self.cov
        if self.num is None:
            raise ValueError(f"covariance over N - {ddof}: the number of images is not known")
        return self.cov * ((self.num - 1) / (self.num - ddof))


class FeatureSums:
    """Gathers features batch by batch, on the device they come from.

    Args:
        dim: of the features.
        keep_features: keep the features themselves too, as float32 on the CPU.
    """

    def __init__(self, dim: int, *, keep_features: bool = False) -> None:
        self.num = 0
        self._sum = torch.zeros([dim], dtype=torch.float64)
        self._products = torch.zeros([dim, dim], dtype=torch.float64)
        self._kept: list[Tensor] | None = [] if keep_features else None

    def append(self, features: Tensor) -> None:
        """Adds a batch of features [B,dim]."""
        x = features.to(torch.float64)
        self._sum = self._sum.to(x.device) + x.sum(dim=0)
        self._products = self._products.to(x.device).addmm_(x.T, x)
        self.num += len(x)
        if self._kept is not None:
            self._kept.append(features.to("cpu", torch.float32))

    def finish(self, *, extractor: str | None = None) -> FeatureStats:
        """The statistics of all features so far, at least two.

        Args:
            extractor: name to put down as their origin.
        """
        if self.num < 2:
            raise UserError(f"{self.num} image(s) to measure; a covariance takes at least 2, and a fair one thousands.")
        mean = self._sum / self.num
        cov = (self._products - self.num * torch.outer(mean, mean)) / (self.num - 1)
        kept = None if self._kept is None else torch.cat(self._kept).numpy()
        return FeatureStats(mean.cpu().numpy(), cov.cpu().numpy(), self.num, extractor, kept)


def save_stats(
    path: str | os.PathLike[str], stats: FeatureStats, extra: Mapping[str, np.ndarray] | None = None
) -> None:
    """Writes statistics to an .npz file, atomically: mu and sigma as in EDM's fid-refs, and num, extractor, features.

    Args:
        extra: further arrays to put into the file; `load_stats` passes over them.
    """
    values = {"mu": stats.mean, "sigma": stats.cov, "num": stats.num, "extractor": stats.extractor}
    values |= {"features": stats.features} | dict(extra or {})
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def load_stats(path: str | os.PathLike[str]) -> FeatureStats:
    """Reads statistics that `save_stats` wrote, or a file of EDM's with mu and sigma alone.

    Raises:
        UserError: if the file is missing, damaged, or does not hold finite numbers of fitting shapes.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; reference statistics are an .npz file with mu and sigma.")
    try:
        # Opened here, because np.load leaves a damaged file open. An object array, hence a pickle, raises ValueError.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: file[name] for name in ("mu", "sigma", "num", "extractor", "features") if name in file}
        return checked_stats(arrays)
    except _DAMAGED as error:
        raise UserError(f"{path} holds no reference statistics ({str(error)[:160]}); make them with --data.") from None


def checked_stats(arrays: Mapping[str, np.ndarray]) -> FeatureStats:
    """Statistics of arrays named as in an .npz file; ValueError if they do not fit together or are not finite."""
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    mean, cov = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
    dim = mean.size
    if mean.ndim != 1 or cov.shape != (dim, dim) or not 0 < dim <= MAX_DIM:
        raise ValueError(f"mu and sigma have the shapes {list(mean.shape)} and {list(cov.shape)}")
    num = int(arrays["num"]) if "num" in arrays else None
    features = arrays.get("features")
    if features is not None and (features.shape != (num, dim) or features.dtype.kind != "f"):
        raise ValueError(f"features are {features.dtype} {list(features.shape)}, not floats [{num}, {dim}]")
    for name, values in (("mu", mean), ("sigma", cov), ("features", features)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    return FeatureStats(mean, cov, num, str(arrays["extractor"]) if "extractor" in arrays else None, features)
