"""Features of image sets: generated ones, and data sets, whose statistics are cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.sampler import load_batch
from stylegan_di.dnnlib.util import UserError, cache_folder
from stylegan_di.images import to_rgb, to_uint8
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.metrics.statistics import FeatureStats, FeatureSums, load_stats, save_stats
from stylegan_di.random import SampleRandom

Report = Callable[[str, int, int], None]  # called with what is being done, how many images are, of how many


def generated_images(
    generator: Generator, *, num: int, batch: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """`num` images uint8 [<=batch,3,H,W] of a generator on `device`, in evaluation mode, its inner noise fixed.

    Labels, uniform over the classes, and latents are each sample's own: equal seeds mean equal samples, whatever the
    batch, and equal labels for all generators.

    Raises:
        UserError: if an image is not finite.
    """
    for start in range(0, num, batch):
        rng = SampleRandom(seed, "metrics", 0, range(start, min(start + batch, num)), device)
        labels = None
        if generator.label_dim:
            labels = torch.nn.functional.one_hot(rng.integers(generator.label_dim), generator.label_dim).float()
        with torch.no_grad(), evaluation_mode(generator):
            images = generator(generator.sample_latents(len(rng), rng=rng), labels)
        if not images.isfinite().all():
            raise UserError("the generator's images are not finite numbers: its weights are damaged, or have diverged.")
        yield to_rgb(to_uint8(images))


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
    """Images at a time where nobody says otherwise: 64 (docs/performance.md, Metrics), fewer from 256x256 on."""
    return max(1, min(64, 2**21 // resolution**2))


def dataset_images(dataset: ImageDataset, *, num: int, batch: int) -> Iterator[Tensor]:
    """The first `num` images uint8 [<=batch,3,H,W] of a data set, on the CPU."""
    for start in range(0, num, batch):
        images, _ = load_batch(dataset, np.arange(start, min(start + batch, num)))
        yield to_rgb(images)


def extract(
    images: Iterable[Tensor],
    extractors: Sequence[FeatureExtractor],
    *,
    keep: Collection[str] = (),
    device: torch.device | str = "cpu",
    report: Callable[[int], None] | None = None,
) -> dict[str, FeatureStats]:
    """Statistics of every extractor's features, by its name, in one pass over the images.

    Args:
        images: batches uint8 [B,3,H,W].
        extractors: on `device`.
        keep: names of the extractors whose features themselves are kept.
        report: called with the number of images done.
    """
    sums = {net.name: FeatureSums(net.dim, keep_features=net.name in keep) for net in extractors}
    done = 0
    for chunk in images:
        for extractor in extractors:
            with torch.no_grad():
                sums[extractor.name].append(extractor(chunk.to(device)))
        done += len(chunk)
        if report is not None:
            report(done)
    return {name: total.finish(extractor=name) for name, total in sums.items()}


def dataset_features(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    num: int | None = None,
    keep_features: bool = False,
    batch: int = 64,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> FeatureStats:
    """Statistics of one extractor's features over a data set; what was computed before comes from the cache.

    The cache is the folder 'metrics' beside the downloads (`dnnlib.util.cache_folder`). It goes by the files' names,
    sizes and times, the choice among them, and the extractor's weights.

    Args:
        num: of the first images, None for all.

    Raises:
        UserError: if an image cannot be read, or the cache cannot be written.
    """
    num = len(dataset) if num is None else num
    key = f"{dataset.fingerprint()}/{num}/{extractor.name}/{_weights_digest(extractor)}/{keep_features}"
    folder = cache_folder().parent / "metrics"
    path = folder / f"{dataset.name}-{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.is_file():
        return load_stats(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stats = extract(
            dataset_images(dataset, num=num, batch=batch),
            [extractor],
            keep=[extractor.name] if keep_features else [],
            device=device,
            report=None if report is None else lambda done: report("Reference images", done, num),
        )[extractor.name]
        save_stats(path, stats)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); set DNNLIB_CACHE_DIR to a folder that can.") from error
    return stats


def _weights_digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
