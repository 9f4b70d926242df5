"""Measures a network or a folder of images against a data set or reference statistics.

    stylegan-di metrics --network=cifar10.pkl --metrics=fid50k_full
    stylegan-di metrics --network=runs/00000-.../network-best.pkl --metrics=fd_fashion,pr_fashion --num=10000
    stylegan-di metrics --images=out/seeds --data=datasets/fashion-32-test.zip --metrics=fd_fashion
    stylegan-di metrics --network=my-gan.pkl --data=my.zip --metrics=fid50k_full,kid50k_full --repeat=3

With --repeat the network is measured on that many independent sets of samples, and mean and spread are reported.
Results are printed as a table and as lines of JSON like those of stylegan2-ada-pytorch; the lines are also appended to
metric-<name>.jsonl in --outdir or in the network's run folder. docs/metrics.md explains each metric.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from stylegan_di import zoo
from stylegan_di.commands.options import device_option, entry_options, given, sampler_options, truncation_options
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.cli import Choice, help_of, user_errors, writable_folder
from stylegan_di.dnnlib.progress import PassProgress, format_time
from stylegan_di.dnnlib.safe_files import open_plain
from stylegan_di.dnnlib.util import UserError, say
from stylegan_di.explore.opening import open_generator
from stylegan_di.interfaces import Generator
from stylegan_di.metrics.evaluate import Evaluator, mean_and_spread
from stylegan_di.metrics.references import SUFFIXES, label_law_of
from stylegan_di.metrics.table import METRICS, Metric, figures_of, metric, need_labels, need_reals
from stylegan_di.runs import processes
from stylegan_di.snapshots.formats import open_contents
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.allocator import keep_freed_memory
from stylegan_di.torch_utils.ops import build as kernels
from stylegan_di.torch_utils.precision import AMP_TYPES


def reference_of(
    metrics: Sequence[str], network: str | None, data: str | None, ref: str | None, mirror: bool
) -> str | ImageDataset | None:
    """Returns what to compare with: --data, --ref or a known network's reference; None if no metric compares."""
    if data is not None and ref is not None:
        raise UserError("--data and --ref are both given; give only the one to compare with")
    if mirror and (data is None or not any(isinstance(m, Metric) and m.mirrored for m in map(metric, metrics))):
        raise UserError("--mirror is for --data and for metrics of mirrored images, such as fid50k; leave it out")
    if not need_reals(metrics):
        if data is not None or ref is not None:
            raise UserError(f"--metrics={','.join(metrics)} compares with no real images; leave --data and --ref out")
        return None
    if mirror:
        return ImageDataset(data or "", xflip=True)
    known = zoo.entry(network or "")
    reference: str | ImageDataset | None = data or ref or (known.reference if known is not None else None)
    if reference is None and network is not None:
        reference = training_set(network)
    if reference is None:
        raise UserError(f"no reference is known for {network or '--images'}; give --data=ZIP|DIR or --ref=NPZ|PKL")
    return reference


def with_labels_of(reference: str | ImageDataset | None, generator: Generator) -> Generator:
    """Gives a conditional generator the reference's frequencies of labels, where its file says none; says so."""
    law, known = None, generator.known_labels
    if reference is None or not generator.label_dim or not (known is None or known.is_guess):
        return generator
    if not isinstance(reference, ImageDataset) and reference.endswith(SUFFIXES):
        law = label_law_of(reference, generator.label_dim)
    else:
        path = reference.path if isinstance(reference, ImageDataset) else reference
        with suppress(UserError):  # that it has no labels
            law = ImageDataset(path, use_labels=True).label_law()
    if law is not None and law.label_dim == generator.label_dim:
        generator.known_labels = law
        say(f"labels are drawn as they are in the reference: {law}")
    return generator


def training_set(network: str) -> ImageDataset | None:
    """Returns the data set that a network file says it was trained on, and says so; None if that is not here."""
    extras = open_contents(network).extras
    found = extras.get("training_set_kwargs") or extras.get("dataset_kwargs")
    found = found if isinstance(found, dict) else {}
    path = found.get("path")
    if not isinstance(path, str) or path.startswith(("//", "\\\\")):  # a file must not make Windows call a server
        return None
    if not (Path(path, "dataset.json").is_file() or (path.endswith(".zip") and Path(path).is_file())):
        return None
    say(f"compared with {path}, the data set that {network} names; give --data or --ref for another")
    return ImageDataset(path, xflip=found.get("xflip") is True)


def table(mean: Mapping[str, float], spread: Mapping[str, float], repeat: int, title: str) -> str:
    width = max(map(len, mean))
    lines = [f"  {name:<{width}}  {value:.6g}" for name, value in mean.items()]
    if repeat > 1:
        lines = [f"{line} +- {value:.2g}" for line, value in zip(lines, spread.values(), strict=True)]
    return "\n".join([title, *lines])


def json_lines(blocks: Sequence[Mapping[str, float]], metrics: Sequence[str], common: Mapping[str, Any]) -> list[str]:
    """Returns a line of metric-<name>.jsonl per metric: means, and for several blocks spread and single results."""
    mean, spread = mean_and_spread(blocks)
    lines = []
    for name in metrics:
        line = {"results": figures_of(name, mean), "metric": name, **common}
        if len(blocks) > 1:
            line |= {"spread": figures_of(name, spread), "blocks": [figures_of(name, block) for block in blocks]}
        lines.append(json.dumps(line | {"timestamp": time.time()}))
    return lines


def refuse_for_images(which: str | None, of_network: Mapping[str, Any], repeat: int) -> None:
    """Raises UserError for options that are for networks."""
    if of_network or repeat > 1:
        raise UserError(
            "--autoencoder, --amp, --trunc, --trunc-mode, --steps, --solver and --repeat are for --network; leave them "
            "out with --images"
        )
    if which is not None:
        raise UserError(f"--which={which} is for --network; leave it out with --images")


def folder_for(outdir: Path | None, network: str | None) -> Path | None:
    """Returns the folder of metric-<name>.jsonl: --outdir, else the run's that the network is of; None for no file."""
    if outdir is not None:
        return writable_folder("--outdir", outdir)
    beside = Path(network or "").parent
    return beside if (beside / "training_options.json").is_file() else None


def write(lines: Iterable[tuple[str, str]], folder: Path | None) -> None:
    """Prints each metric's line, and appends it to its file in the folder."""
    for name, line in lines:
        click.echo(line)
        if folder is not None:
            with open_plain(folder / f"metric-{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")


@click.command(help=help_of(__doc__))
@click.option("--network", metavar="NAME|PATH|URL", help="Network file, or a known name.")
@entry_options
@click.option("--images", metavar="DIR|ZIP", help="Images to measure, instead of a network's.")
@click.option("--data", metavar="DIR|ZIP", help="Data set to compare with; its statistics are cached.")
@click.option("--ref", metavar="NAME|NPZ|PKL", help="Statistics to compare with.  [default: a known network's]")
@click.option("--mirror", type=bool, default=False, metavar="BOOL",
              help="Count the mirrored copies of --data too, for the metrics without _full.")
@click.option("--any-size", is_flag=True,
              help="Images of --images and --data may have any size; each is resized as the metric's network wants.")
@click.option("--metrics", default="fid50k_full", show_default=True, metavar="LIST",
              help=f"Comma-separated, out of {', '.join(METRICS)}.")
@click.option("--num", type=click.IntRange(min=2), default=50000, show_default=True, help="Images to measure.")
@click.option("--seed", type=click.IntRange(min=0),
              help="Seed of latents and labels, or of the choice of --num of --images.  [default: 0]")
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True,
              help="Number of sets of samples, seeded from --seed on; reports mean and spread.")
@click.option("--batch", type=click.IntRange(min=1), help="Images at a time.  [default: 64, fewer from 256x256 on]")
@device_option
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes that share the images, each with a GPU or a CPU core of its own.")
@click.option("--amp", type=Choice(AMP_TYPES),
              help="[network] Type in which the network computes, by autocast.  [default: float32]")
@click.option("--detector-amp", type=Choice(AMP_TYPES),
              help="Type in which the extractors of features compute, by autocast.  [default: float32]")
@click.option("--detector-file", metavar="[NAME=]FILE,...",
              help="Local weights instead of downloads; for several, name them: inception, vgg16, lpips, dinov2, "
              "efficientnet_lite0.")
@truncation_options
@sampler_options
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), help="Folder for metric-<name>.jsonl.")
@user_errors
def main(
    network: str | None,
    which: str | None,
    autoencoder: str | None,
    images: str | None,
    data: str | None,
    ref: str | None,
    mirror: bool,
    any_size: bool,
    metrics: str,
    num: int,
    seed: int | None,
    repeat: int,
    batch: int | None,
    device: str,
    gpus: int,
    amp: str | None,
    detector_amp: str | None,
    detector_file: str | None,
    outdir: Path | None,
    **options: float | str | None,
) -> None:
    keep_freed_memory()
    if (network is None) == (images is None):
        raise UserError("give either --network or --images, to say what to measure")
    if images is not None:
        refuse_for_images(which, given(autoencoder=autoencoder, amp=amp, **options), repeat)
    seed = seed or 0
    if any_size and ((images is None and data is None) or mirror):
        raise UserError("--any-size is for --images and --data without --mirror; leave it out")
    start = time.monotonic()
    names = [name.strip() for name in metrics.split(",")]
    for name in names:
        metric(name)  # a wrong name is told before anything is written
    folder = folder_for(outdir, network)
    if gpus > 1 and not processes.started():
        processes.check_count(gpus, device)
        raise click.exceptions.Exit(processes.run(sys.orig_argv, gpus))
    processes.follow_parent()
    where = distributed.local_device(device)
    distributed.init(where)
    click.get_current_context().call_on_close(distributed.finish)
    kernels.load(where.type, may_build=False)
    reference = reference_of(names, network, data, ref, mirror)
    if any_size and reference == data and data is not None:
        reference = ImageDataset(data, use_labels=need_labels(names), any_size=True)
    generator = None
    if network is not None:
        generator = open_generator(network, which, autoencoder).with_options(**given(**options)).to(where)
        generator = with_labels_of(reference, generator)
    evaluator = Evaluator(
        names, reference, num, batch=batch, detector_file=detector_file, device=where,
        amp=AMP_TYPES.get(amp or ""), detector_amp=AMP_TYPES.get(detector_amp or ""), report=PassProgress(),
    )  # fmt: skip
    if generator is not None:
        blocks = [evaluator(generator, block) for block in range(seed, seed + repeat)]
    else:
        dataset = ImageDataset(images or "", use_labels=need_labels(names), max_size=num, seed=seed, any_size=any_size)
        if len(dataset) < num:
            say(f"--images={images} has {len(dataset)} images, fewer than --num={num}: figures depend on their number")
        num = len(dataset)
        blocks = [evaluator.measure_dataset(dataset)]

    if distributed.rank() != 0:
        return
    source, seconds = network or images or "", time.monotonic() - start
    samples = f"{num} images" if repeat == 1 else f"mean and standard deviation of {repeat} sets of {num} images"
    click.echo(table(*mean_and_spread(blocks), repeat, f"{source}, {samples}:"))
    common = {"total_time": seconds, "total_time_str": format_time(seconds), "num_gpus": distributed.world_size(),
              "num_samples": num, "snapshot_pkl": source, "seed": seed}  # fmt: skip
    write(zip(names, json_lines(blocks, names, common), strict=True), folder)
