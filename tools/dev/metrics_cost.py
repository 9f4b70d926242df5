"""Measures the cost of metrics: images per second of generation by batch, and the parts of FID for small images.

    python tools/dev/metrics_cost.py --num=1000 --json=out/metrics-cost.json

Time is the process's CPU time with one thread, the median of the rounds; memory is a batch's peak. Generation is timed
as metrics use it, with latents, labels and the conversion to bytes. Inception has random weights.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from a clone that is not installed

import stylegan_di
from stylegan_di.dnnlib.cli import user_errors
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.interfaces import FeatureExtractor, Generator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import generated_images
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception import Inception
from stylegan_di.metrics.statistics import FeatureSums
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build
from tools.dev.benchmark import peak_mib, seconds
from tools.dev.benchmark_rows import stylegan2, unet

CPU = torch.device("cpu")
TOTAL = 10000  # number of images to which the parts' seconds are scaled

GENERATORS: dict[str, Callable[[], Generator]] = {
    "fashion-gan.pkl, 16x16": lambda: stylegan_di.load_generator("fashion-gan.pkl"),
    "small StyleGAN2, 32x32": lambda: StyleGAN2Student(stylegan2("small", CPU)),
    "StyleGAN2 cifar (20M), 32x32": lambda: StyleGAN2Student(stylegan2("cifar", CPU)),
    "small one-step U-Net, 32x32": lambda: OneStepStudent(unet("small", CPU), 2.5),
}


@dataclass(frozen=True)
class Speed:
    """Speed of a generator at one batch, and its memory in MiB."""

    generator: str
    batch: int
    images_per_second: float
    peak_mib: float


@dataclass(frozen=True)
class Part:
    """Seconds of one part of FID for `images` images; `scaled` are the seconds for TOTAL images."""

    name: str
    images: int
    seconds: float
    scaled: float


def generate(generator: Generator, num: int, batch: int) -> Tensor:
    """Generates images as for metrics."""
    return torch.cat(list(generated_images(generator, num=num, batch=batch)))


def generation_speeds(name: str, batches: Iterable[int], num: int, rounds: int) -> list[Speed]:
    """Measures each batch with at least `num` images; the batches alternate, so that a busy machine slows all alike."""
    generator = GENERATORS[name]()
    calls = {batch: partial(generate, generator, max(num, batch), batch) for batch in batches}
    times: dict[int, list[float]] = {batch: [] for batch in calls}
    generate(generator, num, num)
    for _ in range(rounds):
        for batch, call in calls.items():
            times[batch].append(seconds(call, CPU) / max(num, batch))
    memory = {batch: peak_mib(partial(generate, generator, batch, batch), CPU) for batch in calls}
    return [Speed(name, batch, 1 / statistics.median(times[batch]), memory[batch]) for batch in calls]


def feature_parts(extractor: FeatureExtractor, label: str, images: Tensor, batch: int) -> list[Part]:
    """Times the extraction, the sums, and the distance between the two halves' statistics."""
    num = len(images)
    features: list[Tensor] = []

    def extraction() -> None:
        with torch.no_grad():
            features.extend(extractor(chunk) for chunk in images.split(batch))

    extractor(images[:batch])  # not timed: the first call prepares convolutions
    parts = [Part(f"{label}: features", num, time := seconds(extraction, CPU), time * TOTAL / num)]
    halves = [FeatureSums(extractor.dim) for _ in range(2)]

    def sums() -> None:
        for index, chunk in enumerate(features):
            halves[index % 2].append(chunk)

    parts.append(Part(f"{label}: sums for mean and covariance", num, time := seconds(sums, CPU), time * TOTAL / num))

    def distance() -> None:
        a, b = (half.finish(extractor=extractor.name) for half in halves)
        frechet_distance(a.mean, a.cov, b.mean, b.cov)

    parts.append(Part(f"{label}: Frechet distance, once", num, time := seconds(distance, CPU), time))
    return parts


def inception() -> FeatureExtractor:
    """Returns an optimized Inception with random weights."""
    torch.manual_seed(0)
    return Inception().eval().requires_grad_(False).optimized()


def measure_parts(num: int, batch: int) -> list[Part]:
    """Times the generation by each generator, then the processing of the images."""
    parts = []
    for name, make in GENERATORS.items():
        generator = make()
        generate(generator, batch, batch)
        time = seconds(partial(generate, generator, num, batch), CPU)
        parts.append(Part(f"generation: {name}", num, time, time * TOTAL / num))
    images = torch.randint(0, 256, [num, 3, 32, 32], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts += feature_parts(inception(), "Inception, 2048", images, batch)
    return parts + feature_parts(open_extractor("fashion", None), "fashion classifier, 64", images, batch)


@click.command(help=__doc__.replace("\n    ", "\n\n    ") if __doc__ else None)
@click.option("--batches", default="1,2,4,8,16,32,64,128,256", show_default=True, help="Comma-separated.")
@click.option("--num", type=click.IntRange(min=2), default=1000, show_default=True, help="Images for the parts.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Batch for the parts.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Timings of each batch.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here too.")
@user_errors
def main(batches: str, num: int, batch: int, rounds: int, target: Path | None) -> None:
    """Prints each row as it is done."""
    keep_freed_memory()
    torch.set_num_threads(1)
    ops = build.load("cpu", may_build=True)
    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        raise UserError(f"--batches={batches}: accepted are whole numbers, such as 1,8,64") from None
    click.echo("| generator | batch | images/s | MiB |\n|---|---|---|---|")
    speeds: list[Speed] = []
    for name in GENERATORS:
        found = generation_speeds(name, sizes, 64, rounds)
        speeds += found
        for speed in found:
            click.echo(f"| {name} | {speed.batch} | {speed.images_per_second:.1f} | {speed.peak_mib:.0f} |")
    click.echo(f"\n| part | s of {num} images | s of {TOTAL} |\n|---|---|---|")
    parts = measure_parts(num, batch)
    for part in parts:
        click.echo(f"| {part.name} | {part.seconds:.2f} | {part.scaled:.1f} |")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        report = {"ops": ops, "torch": torch.__version__, "rounds": rounds, "batch": batch, "total": TOTAL}
        report |= {"speeds": [asdict(speed) for speed in speeds], "parts": [asdict(part) for part in parts]}
        atomic_write(target, json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    main()
