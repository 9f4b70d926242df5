"""What is checked before a run begins, by the headers of its files: all problems at once, before anything is written.

Each check yields problems as sentences that name the options. A dry run makes them too, as far as the files are on
this machine: nothing is downloaded for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.augment import augment_pipe
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.dnnlib.util import Problems, UserError, not_installed
from stylegan_di.inputs import Files, meant, reference_name, shape_of
from stylegan_di.labels import class_map
from stylegan_di.metrics.references import SUFFIXES, references_for
from stylegan_di.metrics.table import need_reals
from stylegan_di.presets import R3GAN as R3GAN_PRESET
from stylegan_di.snapshots.blueprint import R3GAN, STYLEGAN3, ImageShape
from stylegan_di.snapshots.pipelines import Autoencoder, is_pipeline, read_pipeline
from stylegan_di.students import stylegan2, stylegan3
from stylegan_di.students.refiner import PARTS as REFINER_PARTS
from stylegan_di.teachers.mixed import parse_teachers
from stylegan_di.torch_utils.ops import build as kernels

MBSTD_GROUP = 4  # of discriminators whose files do not say


def check(config: TrainConfig, *, processes: int, fetch: bool) -> None:
    """Raises UserError with every problem found.

    Args:
        config: the run.
        processes: that it will have.
        fetch: whether files that are not on this machine are downloaded; else they are not looked at.
    """
    files = Files(config, fetch)
    checks = (_processes(config, processes), _minibatch(config, processes, files), _graph(config), _compiler(config),
              _trackers(config), _reference(config, fetch), _teacher(config, files), _critic(config, files),
              _gan(config, files), _freeze(config, files), _data(config, files))  # fmt: skip
    problems = [problem for found in checks for problem in found] + files.problems
    if problems:
        raise Problems(*problems) if len(problems) > 1 else UserError(*problems)


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


def _graph(config: TrainConfig) -> Iterator[str]:
    if config.cuda_graph == "true" and not config.device.startswith("cuda"):
        yield f"--cuda-graph=true is for a GPU, and this runs on {config.device}: leave it out"


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
    if need_reals(config.metrics):
        try:
            _check_reference(config, fetch)
        except UserError as error:
            yield str(error)
    elif config.metrics and config.ref is not None:
        yield f"--ref={config.ref}: --metrics={','.join(config.metrics)} compares with no real images; leave it out"


def _check_reference(config: TrainConfig, fetch: bool) -> None:
    """Raises UserError if there is nothing to compare with, or a file of statistics has not what a metric needs."""
    source = reference_name(config)
    if source is None or not (fetch or zoo.is_local(source)):
        return
    if zoo.resolve(source).suffix in SUFFIXES:
        references_for(config.metrics, source)


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
            yield (
                f"{config.wants_discriminator}: the discriminator takes the GAN's classes, and --data={config.data} "
                f"has the teacher's, which are others with --classes={config.classes}; give --critic=features in its "
                "place, or real images"
            )
    if config.trains_critic and files.gan is not None and files.gan.blueprints.get("D") is None:
        yield (
            f"--gan-pkl={config.gan_pkl} holds no discriminator 'D', which {config.wants_discriminator} needs; "
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
    width = None if data.width == data.resolution else data.width
    images = ImageShape(data.resolution, data.num_channels, data.label_dim, width)
    if files.autoencoder is not None:
        yield from _latents(config, images, files.autoencoder)
    yield from _sizes(config, images, 1 if files.autoencoder is None else files.autoencoder.downsampling)
    if config.subset is not None and config.subset > len(data):
        yield f"--subset={config.subset}: --data={config.data} holds {len(data)} images; leave it out to use all"
    yield from _alike(config, files, images)
    if config.trains_critic and config.aug != "noaug":
        yield from _augmentations(config, data.resolution)


def _unfit(config: TrainConfig, images: ImageShape) -> str:
    """The beginning of what is wrong with the size of images."""
    size = f"side {images.resolution}" if images.width is None else images.size
    return f"--data={config.data} has images of {size}"


def _latents(config: TrainConfig, images: ImageShape, autoencoder: Autoencoder) -> Iterator[str]:
    known = autoencoder.image_channels
    if known != images.channels:
        yield (
            f"--data={config.data} has images of {images.channels} channels, and --autoencoder={config.autoencoder} "
            f"takes images of {known}: make them so with stylegan-di dataset (--channels)"
        )
    if images.width is not None:
        taken = f"--autoencoder={config.autoencoder} is for square ones"
        yield f"{_unfit(config, images)}; {taken}: leave it out, or crop them"


def _sizes(config: TrainConfig, images: ImageShape, factor: int) -> Iterator[str]:
    """A U-Net halves the sides level by level, after an autoencoder that makes them `factor` times smaller."""
    side, unfit = images.resolution, _unfit(config, images)
    makes_network = config.trains_teacher or (config.kind == "edm" and config.transfer is None)
    levels = len(config.channel_mult) if makes_network else 1
    multiple = factor * 2 ** (levels - 1)
    if side % multiple or (images.width or side) % multiple:
        needed = "one" if images.width is None else "sides"
        yield (
            f"{unfit}; --channel-mult of {levels} resolutions needs {needed} divisible by {multiple}: resize with "
            "stylegan-di dataset"
        )
    if config.kind == "gan" and images.width is not None:
        yield f"{unfit}; --kind=gan needs square ones: crop with stylegan-di dataset --transform=center-crop"
    elif config.kind == "gan" and (side < 4 or side & (side - 1)):
        yield f"{unfit}; --kind=gan needs one that is a power of two, from 4: resize with stylegan-di dataset"
    if config.kind == "gan" and config.resume is None and config.cbase < side:
        yield f"--cbase={config.cbase} leaves no channels at {side} pixels: give {side} or more"


def _alike(config: TrainConfig, files: Files, images: ImageShape) -> Iterator[str]:
    """Images, or their latents, are to be as those of the network that there is already."""
    network, whose = next(iter(files.teachers.values()), None), "teacher"
    for start, name in ((files.transfer, "network to start from"), (files.gan, "GAN")):
        if start is not None:
            network, whose = shape_of(start), name
    if (autoencoder := files.autoencoder) is not None:
        side = images.resolution // autoencoder.downsampling
        images = replace(images, resolution=side, channels=autoencoder.latent_channels)
    if network is not None and images != network:
        yield (
            f"--data={config.data}: resolution, channels, classes are {images}, the {whose}'s {network}; --cond=true "
            "reads the labels of the data set, stylegan-di dataset resizes it (--resolution) and makes it gray or RGB "
            "(--channels)"
        )


def _augmentations(config: TrainConfig, side: int) -> Iterator[str]:
    pipe = augment_pipe(config.augpipe)
    reach = pipe.Hz_fbank.shape[1] // 2
    if pipe.imgfilter and side <= reach:
        yield (
            f"--augpipe={config.augpipe} filters frequency bands, which needs images larger than {reach} pixels, and "
            f"those of --data={config.data} have {side}; choose one without, such as bgc"
        )
