"""What is checked before a run begins, by the headers of its files: all problems at once, before anything is written.

Each check yields problems as sentences that name the options. A dry run makes them too, as far as the files are on
this machine: nothing is downloaded for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.augment import augment_pipe
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import PREFIX, samples_wanted
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError, did_you_mean, not_installed
from stylegan_di.hub import HUB
from stylegan_di.labels import class_map
from stylegan_di.metrics.references import SUFFIXES, load_references, picked
from stylegan_di.metrics.table import Metric, metric, need_reals
from stylegan_di.presets import R3GAN as R3GAN_PRESET
from stylegan_di.snapshots.blueprint import R3GAN, STYLEGAN3, Blueprint, ImageShape, image_shape
from stylegan_di.snapshots.checkpoint import MODELS
from stylegan_di.snapshots.formats import Contents, open_contents
from stylegan_di.snapshots.pipelines import Part, downsampling, is_pipeline, read_autoencoder, read_pipeline
from stylegan_di.snapshots.teacher_files import LATENT_CHANNELS, student_shape
from stylegan_di.students import stylegan2, stylegan3
from stylegan_di.students.refiner import PARTS as REFINER_PARTS
from stylegan_di.teachers.mixed import parse_teachers
from stylegan_di.torch_utils.ops import build as kernels

T = TypeVar("T")
MBSTD_GROUP = 4  # of discriminators whose files do not say


def check(config: TrainConfig, *, processes: int, fetch: bool) -> None:
    """Raises UserError with every problem found.

    Args:
        config: the run.
        processes: that it will have.
        fetch: whether files that are not on this machine are downloaded; else they are not looked at.
    """
    files = Files(config, fetch)
    checks = (_processes(config, processes), _minibatch(config, processes, files), _compiler(config),
              _trackers(config), _reference(config, fetch), _teacher(config, files), _critic(config, files),
              _gan(config, files), _freeze(config, files), _data(config, files))  # fmt: skip
    problems = [problem for found in checks for problem in found] + files.problems
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, start=1))
        raise UserError(f"{len(problems)} problems: {listed}")


@dataclass
class Files:
    """The headers of a run's files, opened when first asked for; None for those that it has not, or cannot be read."""

    config: TrainConfig
    fetch: bool

    def __post_init__(self) -> None:
        self.problems: list[str] = []  # what went wrong while opening

    @cached_property
    def gan(self) -> Contents | None:
        return self._contents(self.config.gan_pkl)

    @cached_property
    def resumed(self) -> Contents | None:
        """The GAN that --kind=gan starts from."""
        source = self.config.resume
        return self._contents(None if source is None else zoo.TRANSFER_SOURCES.get(source, source))

    @cached_property
    def transfer(self) -> Contents | None:
        """The denoiser that --kind=edm starts from."""
        return self._contents(self.config.transfer)

    @cached_property
    def teachers(self) -> dict[str, ImageShape]:
        """The images that each teacher is made for, by its name."""
        if self.config.teacher is None or self.config.trains_teacher:
            return {}
        found = {term.source: self._teacher(term.source) for term in parse_teachers(self.config.teacher)}
        return {source: shape for source, shape in found.items() if shape is not None}

    def _teacher(self, source: str) -> ImageShape | None:
        options = self.config.teacher_options
        on_a_hub = any(name.startswith(HUB) for name in (source, options.autoencoder or ""))
        if on_a_hub and not self.fetch:
            return None

        def shape_of_teacher() -> ImageShape | None:
            with untrusted(f"--teacher={source}"):
                if is_pipeline(source):
                    return read_pipeline(source, options).shape(options)
                shape = shape_of(self._contents(source))
                return None if shape is None else student_shape(source, shape, options)

        return self._noted(shape_of_teacher)

    @cached_property
    def data(self) -> ImageDataset | None:
        """The data set with its first image."""
        if self.config.data is None or not self.config.needs_data or samples_wanted(self.config.data) is not None:
            return None
        data, labels = self.config.data, self.config.cond
        return self._noted(lambda: open_data(data, use_labels=labels))

    @cached_property
    def autoencoder(self) -> Part | None:
        """The autoencoder in whose latents --kind=edm trains."""
        source = self.config.autoencoder
        if source is None or self.config.kind != "edm" or (source.startswith(HUB) and not self.fetch):
            return None
        return self._noted(lambda: read_autoencoder(source))

    def _contents(self, source: str | None) -> Contents | None:
        if source is None or not (self.fetch or zoo.is_local(source)):
            return None
        return self._noted(lambda: open_contents(source))

    def _noted(self, opened: Callable[[], T]) -> T | None:
        """What can be opened; a problem is noted, to be told with the others."""
        try:
            return opened()
        except UserError as error:
            self.problems.append(str(error))
            return None


def open_data(path: str, *, use_labels: bool = False) -> ImageDataset:
    """Opens the images of --data.

    Raises:
        UserError: there are none.
    """
    if not Path(path).exists():
        name, _, count = path.partition(":")
        meant = did_you_mean(name.lower(), ["teacher"])
        hint = f"; did you mean {PREFIX}{count or '10000'}?" if meant else ""
        raise UserError(f"--data={path} does not exist; give a folder or a .zip file of images{hint}")
    return ImageDataset(path, use_labels=use_labels)


def meant(contents: Contents | None) -> Blueprint | None:
    """The network that is meant: the first of MODELS that the file has."""
    blueprints = {} if contents is None else contents.blueprints
    return next((blueprint for name in MODELS if (blueprint := blueprints.get(name)) is not None), None)


def shape_of(contents: Contents | None) -> ImageShape | None:
    """What images the network that is meant makes."""
    found = meant(contents)
    return None if found is None else image_shape(found)


def reference_of(config: TrainConfig) -> str | None:
    """The reference statistics of the metrics: --ref, else those of a known GAN or teacher; None: --data itself.

    Raises:
        UserError: there is nothing to compare with.
    """
    known = zoo.entry(config.gan_pkl or "")
    if known is None and config.match == "pixels":
        known = zoo.entry(config.teacher or "")
    source = config.ref or (known.reference if known is not None else None)
    has_images = config.needs_data and config.data is not None and samples_wanted(config.data) is None
    if source is None and not has_images:
        raise UserError(
            f"--metrics={','.join(config.metrics)} needs --ref=NPZ, reference statistics, because none are known for "
            f"{config.gan_pkl or config.teacher}; or give --metrics=none"
        )
    return source


# The checks.


def _processes(config: TrainConfig, processes: int) -> Iterator[str]:
    if config.batch % processes:
        yield f"--batch={config.batch} does not divide over {processes} processes"
    together = min(config.batch_gpu or config.batch, config.batch) * processes
    if config.kind == "di" and config.weighs_samples and together == 1:
        alone = "--batch=1" if config.batch == 1 else "--batch-gpu=1"
        yield (
            f"--divergence={config.divergence} weighs the images that are computed together against each other, and "
            f"{alone} leaves one: give 2 or more"
        )
    if config.fsdp and processes == 1:
        yield "--fsdp spreads weights over several processes, and there is one: give --gpus, or leave it out"


def _minibatch(config: TrainConfig, processes: int, files: Files) -> Iterator[str]:
    """The minibatch standard deviation takes whole groups of the images that are computed together."""
    if not config.trains_critic or config.cfg == R3GAN_PRESET:
        return
    wanted, name, other = config.mbstd_group, f"--mbstd-group={config.mbstd_group}", ", or another --mbstd-group"
    source = files.gan if config.kind == "di" else files.resumed
    if source is not None:
        network = source.blueprints.get("D")
        if network is not None and network.class_name.startswith(R3GAN):
            return
        epilogue = {} if network is None else network.init_kwargs.get("epilogue_kwargs") or {}
        wanted = epilogue.get("mbstd_group_size", MBSTD_GROUP)
        option = f"--gan-pkl={config.gan_pkl}" if config.kind == "di" else f"--resume={config.resume}"
        name, other = f"{option}: the minibatch standard deviation of its discriminator", ""
    share = config.batch // processes
    together = min(config.batch_gpu or share, share)
    for size in {together, share % together if together else 0} - {0}:
        group = size if wanted is None else min(wanted, size)
        if size % group:
            yield (
                f"{name}: {size} images at a time do not divide into groups of {group}; choose --batch or --batch-gpu "
                f"as its multiple{other}"
            )


def _compiler(config: TrainConfig) -> Iterator[str]:
    if config.compile:
        try:
            kernels.recipe("cpu")  # PyTorch wants a C++ compiler for the GPU too
        except UserError as error:
            yield f"--compile: {error}; or leave it out"


def _trackers(config: TrainConfig) -> Iterator[str]:
    for name in config.track:
        if find_spec(name) is None:
            yield f"{not_installed(f'--track={name}', name, 'track')}; or leave it out"


def _reference(config: TrainConfig, fetch: bool) -> Iterator[str]:
    if config.metrics and not need_reals(config.metrics):
        if config.ref is not None:
            yield f"--ref={config.ref}: --metrics={','.join(config.metrics)} compares with no real images; leave it out"
    elif config.metrics:
        try:
            source = reference_of(config)
            if source is not None and (fetch or zoo.is_local(source)):
                path = zoo.resolve(source)
                found = load_references(path) if path.suffix in SUFFIXES else {}
                for entry in map(metric, config.metrics) if found else ():
                    if isinstance(entry, Metric) and entry.uses_reals:
                        picked(found, entry, source)
        except UserError as error:
            yield str(error)


def _teacher(config: TrainConfig, files: Files) -> Iterator[str]:
    gan, resized = shape_of(files.gan), config.match == "resize"
    sizes = sorted({teacher.size for teacher in files.teachers.values()})
    if len(sizes) > 1 and any(teacher.width is not None for teacher in files.teachers.values()):
        yield f"--teacher: images of {' and '.join(sizes)}; where they are not square, choose teachers of one size"
    for source, teacher in files.teachers.items():
        if gan is None:
            continue
        unlike = f"--teacher={source} and --gan-pkl={config.gan_pkl} do not match: "
        if teacher.width is not None:
            yield f"{unlike}images of {teacher.size} against square ones; choose another teacher, or distil it alone"
            continue
        for what in ("resolution", "channels") if not resized else ():
            if getattr(teacher, what) != getattr(gan, what):
                yield (
                    f"{unlike}{what} {getattr(teacher, what)} against {getattr(gan, what)}; choose a teacher trained "
                    "on images like the GAN's, or let it see them resized: --match=resize"
                )
        try:
            class_map(config.classes, gan.classes, teacher.classes)
        except UserError as error:
            yield f"{unlike if config.classes is None else ''}{error}"


def _critic(config: TrainConfig, files: Files) -> Iterator[str]:
    """A critic stands on the first teacher, or on those of its pixels that are mixed with it."""
    if config.critic == "none" or config.teacher is None or config.trains_teacher:
        return
    source, *others = [term.source for term in parse_teachers(config.teacher)]
    if source not in files.teachers or not is_pipeline(source):
        return
    pipeline = read_pipeline(source, config.teacher_options)
    if pipeline.is_transformer and (not others or pipeline.autoencoder is not None):
        yield (
            f"--critic={config.critic} judges by the features of a U-Net's encoder, which --teacher={source}, a "
            f"{pipeline.network.class_name}, has not: choose another teacher, or leave --critic out"
        )


def _gan(config: TrainConfig, files: Files) -> Iterator[str]:
    if config.adv_weight and config.match != "pixels" and samples_wanted(config.data) is not None:
        yield (
            f"--adv-weight={config.adv_weight:g}: the discriminator cannot learn from --data={config.data}, whose "
            f"size is the teacher's with --match={config.match}; give --critic=features, or real images"
        )
    elif config.trains_critic and config.classes is not None and samples_wanted(config.data) is not None:
        gan = shape_of(files.gan)
        if gan is not None and gan.classes:
            wanted = f"--adv-weight={config.adv_weight:g}" if config.adv_weight else f"--divergence={config.divergence}"
            yield (
                f"{wanted}: the discriminator takes the GAN's classes, and --data={config.data} has the teacher's, "
                f"which are others with --classes={config.classes}; give --critic=features in its place, or real images"
            )
    if config.trains_critic and files.gan is not None and files.gan.blueprints.get("D") is None:
        yield (
            f"--gan-pkl={config.gan_pkl} holds no discriminator 'D', which {config.wants_reals} needs; "
            "use the training's own .pkl, or leave that option out"
        )


def _freeze(config: TrainConfig, files: Files) -> Iterator[str]:
    """The parts of a StyleGAN2 are its mapping network and a block a resolution, of a StyleGAN3 its layers."""
    network, gan = meant(files.gan), shape_of(files.gan)
    if network is not None and gan is not None and config.freeze:
        if config.student == "refiner":
            parts = [*REFINER_PARTS]
        elif network.class_name.startswith(R3GAN):
            parts = []
        elif network.class_name == STYLEGAN3:
            parts = stylegan3.part_names(network.init_kwargs.get("num_layers", stylegan3.NUM_LAYERS))
        else:
            parts = stylegan2.part_names(4 * 2**level for level in range(gan.resolution.bit_length() - 2))
        if unknown := [part for part in config.freeze if part not in parts]:
            yield f"--freeze={unknown[0]}: there is no such part; it has {', '.join(parts) or 'none'}"


def _data(config: TrainConfig, files: Files) -> Iterator[str]:
    data = files.data
    if data is None:
        return
    side, width, channels = data.resolution, data.width, data.num_channels
    found = ImageShape(side, channels, data.label_dim, None if width == side else width)
    unfit = f"--data={config.data} has images of " + (f"side {side}" if width == side else found.size)
    factor = 1
    if (autoencoder := files.autoencoder) is not None:
        factor, known = downsampling(autoencoder), autoencoder.config.get("in_channels", 3)
        if known != channels:
            yield (
                f"--data={config.data} has images of {channels} channels, and --autoencoder={config.autoencoder} takes "
                f"images of {known}: make them so with stylegan-di dataset (--channels)"
            )
        if width != side:
            yield f"{unfit}; --autoencoder={config.autoencoder} is for square ones: leave it out, or crop them"
        channels = autoencoder.config.get("latent_channels", LATENT_CHANNELS)
    makes_network = config.trains_teacher or (config.kind == "edm" and config.transfer is None)
    levels = len(config.channel_mult) if makes_network else 1
    multiple = factor * 2 ** (levels - 1)
    if side % multiple or width % multiple:
        needed = "one" if width == side else "sides"
        yield (
            f"{unfit}; --channel-mult of {levels} resolutions needs {needed} divisible by {multiple}: resize with "
            "stylegan-di dataset"
        )
    if config.kind == "gan" and width != side:
        yield f"{unfit}; --kind=gan needs square ones: crop with stylegan-di dataset --transform=center-crop"
    elif config.kind == "gan" and (side < 4 or side & (side - 1)):
        yield f"{unfit}; --kind=gan needs one that is a power of two, from 4: resize with stylegan-di dataset"
    if config.kind == "gan" and config.resume is None and config.cbase < side:
        yield f"--cbase={config.cbase} leaves no channels at {side} pixels: give {side} or more"
    if config.subset is not None and config.subset > len(data):
        yield f"--subset={config.subset}: --data={config.data} holds {len(data)} images; leave it out to use all"
    network, whose = next(iter(files.teachers.values()), None), "teacher"
    for start, name in ((files.transfer, "network to start from"), (files.gan, "GAN")):
        if start is not None:
            network, whose = shape_of(start), name
    found = ImageShape(side // factor, channels, data.label_dim, found.width)
    if network is not None and found != network:
        yield (
            f"--data={config.data}: resolution, channels, classes are {found}, the {whose}'s "
            f"{network}; --cond=true reads the labels of the data set, stylegan-di dataset resizes it "
            "(--resolution) and makes it gray or RGB (--channels)"
        )
    if config.trains_critic and config.aug != "noaug":
        pipe = augment_pipe(config.augpipe)
        reach = pipe.Hz_fbank.shape[1] // 2
        if pipe.imgfilter and side <= reach:
            yield (
                f"--augpipe={config.augpipe} filters frequency bands, which needs images larger than {reach} pixels, "
                f"and those of --data={config.data} have {side}; choose one without, such as bgc"
            )
