"""Features of images: of generated ones, and of data sets, whose statistics are cached on disk.

The processes of a run share the work: batch k is made, and its features extracted, in the process of rank k mod
world_size. The first process combines the features in order, so that statistics have the same bits as in one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import load_batch
from stylegan_di.dnnlib.util import UserError, cache_errors, cache_folder, say
from stylegan_di.images import to_rgb, to_uint8
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.metrics.statistics import FeatureStats, FeatureSums, load_stats, save_stats
from stylegan_di.random import SampleRandom
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.torch_utils.precision import autocast

Report = Callable[[str, int, int], None]  # called with what is being done, how many images are, of how many


@dataclass(frozen=True)
class Batches:
    """A sequence of the batches of `num` images, each of which is made when it is asked for.

    `batch` is the number of images in a batch; the last one may have fewer. `make` turns the images' indices into a
    batch uint8 [<=batch,3,H,W], and `classes` into their classes, int64 [<=batch]; None where they have none.
    """

    num: int
    batch: int
    make: Callable[[range], Tensor]
    classes: Callable[[range], Tensor] | None = None

    def __len__(self) -> int:
        return -(-self.num // self.batch)

    def __getitem__(self, index: int) -> Tensor:
        return self.make(self._indices(index))

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    def labels(self) -> np.ndarray:
        """The class of every image, int64 [num]; no image is made for it."""
        assert self.classes is not None
        return torch.cat([self.classes(self._indices(index)) for index in range(len(self))]).cpu().numpy()

    def _indices(self, index: int) -> range:
        start = index * self.batch
        return range(start, min(start + self.batch, self.num))


def generated_images(
    generator: Generator,
    *,
    num: int,
    batch: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
) -> Batches:
    """Images of a generator on `device`, in evaluation mode.

    Each sample draws its own label, by the generator's law, its own latent, and, as in NVlabs' metrics, any noise
    inside, which is part of the distribution. Equal seeds mean equal samples, whatever the batch, and equal labels for
    all generators of one law. Samples with vectors for labels have no classes. `amp` is the type in which autocast lets
    the generator compute; None for float32.

    Raises:
        UserError: when a batch is made, if an image is not finite.
    """

    law = generator.label_law

    def classes(indices: range) -> Tensor:
        return law.draw(SampleRandom(seed, "metrics", 0, indices)).argmax(dim=1)  # as `make` begins

    def make(indices: range) -> Tensor:
        rng = SampleRandom(seed, "metrics", 0, indices, device)
        labels = generator.sample_labels(rng=rng)
        with torch.no_grad(), evaluation_mode(generator), autocast(device, amp):
            images = generator(generator.sample_latents(len(rng), rng=rng), labels, rng=rng)
        if not images.isfinite().all():
            raise UserError("the generator's images are not finite numbers: its weights are damaged, or have diverged.")
        return to_rgb(to_uint8(images))

    return Batches(num, batch, make, classes if generator.label_dim and law.vectors is None else None)


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Puts a module and all in it into evaluation mode, and each back into its own mode afterwards."""
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True


def batch_size(resolution: int) -> int:
    """The default number of images in a batch: 64 (docs/performance.md, Metrics), fewer from 256x256 on."""
    return max(1, min(64, 2**21 // resolution**2))


def dataset_images(dataset: ImageDataset, *, num: int, batch: int) -> Batches:
    """The first `num` images of a data set, on the CPU; with their classes if it was opened with its labels.

    Images of any size come one at a time, as feature extractors resize them.

    Raises:
        UserError: when classes are asked for, if the labels are other vectors than those of classes.
    """

    def make(indices: range) -> Tensor:
        return to_rgb(load_batch(dataset, np.asarray(indices))[0])

    def classes(indices: range) -> Tensor:
        labels = load_batch(dataset, np.asarray(indices))[1]
        if not (labels.amax(dim=1) == 1).all() or not (labels.abs().sum(dim=1) == 1).all():
            raise UserError(f"the labels of {dataset.name} are vectors, not classes")
        return labels.argmax(dim=1)

    return Batches(num, 1 if dataset.any_size else batch, make, classes if dataset.has_labels else None)


def extract(
    images: Batches,
    extractors: Sequence[FeatureExtractor],
    *,
    keep: Collection[str] = (),
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    report: Callable[[int], None] | None = None,
) -> dict[str, FeatureStats]:
    """Statistics of every extractor's features, by its name, in one pass over the images.

    All processes of a run call it inside `distributed.together`; the first gets the statistics, the others get {}.

    Args:
        extractors: networks on `device`.
        keep: names of the extractors whose features themselves are kept.
        amp: the type in which autocast lets the extractors compute; None for float32.
        report: called in every process with the number of images that all have done.
    """
    is_first = distributed.rank() == 0
    sums = {net.name: FeatureSums(net.dim, keep_features=net.name in keep) for net in extractors if is_first}

    def features(indices: range) -> list[Tensor]:
        chunk = images.make(indices).to(device)
        with torch.no_grad(), autocast(device, amp):
            return [extractor(chunk).float() for extractor in extractors]

    def append(results: Sequence[Tensor]) -> None:
        for extractor, result in zip(extractors, results, strict=True):
            sums[extractor.name].append(result.to(device))

    distributed.share_out(images.num, images.batch, features, append, report)
    return {name: total.finish(extractor=name) for name, total in sums.items()}


def dataset_features(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    num: int | None = None,
    keep_features: bool = False,
    batch: int = 64,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    report: Report | None = None,
) -> FeatureStats | None:
    """Statistics of one extractor's features over a data set, from the cache if they have been computed before.

    The cache is the folder 'metrics' beside the downloads (`dnnlib.util.cache_folder`). An entry is found by the
    files' names, sizes and times, the choice among them, the extractor's weights, and `amp` (see `extract`).

    All processes of a run call it inside `distributed.together`. The first reads and writes the cache and gets the
    statistics, the others get None.

    Args:
        num: how many images count, from the first on; None for all.
        report: called in every process.

    Raises:
        UserError: if an image cannot be read, or the cache cannot be written.
    """
    num = len(dataset) if num is None else num
    path, found = None, None
    if distributed.rank() == 0:
        key = f"{dataset.fingerprint()}/{num}/{extractor.name}/{weights_hash(extractor)}/{keep_features}"
        key += "" if amp is None else f"/{amp}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = cache_folder().parent / "metrics" / f"{dataset.name}-{extractor.name}-{digest}.npz"
        found = _cached(path)
    distributed.meet()
    if distributed.any_process(found is not None):
        return found
    if path is not None:
        with cache_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    stats = extract(
        dataset_images(dataset, num=num, batch=batch),
        [extractor],
        keep=[extractor.name] if keep_features else [],
        device=device,
        amp=amp,
        report=None if report is None else lambda done: report("Reference images", done, num),
    ).get(extractor.name)
    if path is not None and stats is not None:
        with cache_errors(path.parent):
            save_stats(path, stats)
    return stats


def _cached(path: Path) -> FeatureStats | None:
    """Returns the cached statistics; None if there are none, or none that can be used."""
    if not path.is_file():
        return None
    try:
        return load_stats(path)
    except UserError as error:
        say(f"{error} They are computed anew.")
        return None
