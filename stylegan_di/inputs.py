"""The files that a run starts from, by their headers alone: GANs, teachers, images, reference statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.data.teacher_samples import PREFIX
from stylegan_di.dnnlib.untrusted import untrusted
from stylegan_di.dnnlib.util import UserError, did_you_mean
from stylegan_di.hub import HUB
from stylegan_di.snapshots.blueprint import Blueprint, ImageShape, image_shape
from stylegan_di.snapshots.checkpoint import MODELS
from stylegan_di.snapshots.formats import Contents, open_contents
from stylegan_di.snapshots.pipelines import Autoencoder, is_pipeline, read_autoencoder, read_pipeline
from stylegan_di.snapshots.teacher_files import student_shape
from stylegan_di.teachers.mixed import parse_teachers

T = TypeVar("T")


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
        data, labels = self.config.image_files, self.config.cond
        return None if data is None else self._noted(lambda: open_data(data, use_labels=labels))

    @cached_property
    def autoencoder(self) -> Autoencoder | None:
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


def reference_name(config: TrainConfig) -> str | None:
    """The reference statistics of the metrics: --ref, else those of a known GAN or teacher; None: --data itself.

    Raises:
        UserError: there is nothing to compare with.
    """
    known = zoo.entry(config.gan_pkl or "")
    if known is None and config.match == "pixels":
        known = zoo.entry(config.teacher or "")
    source = config.ref or (known.reference if known is not None else None)
    if source is None and config.image_files is None:
        raise UserError(
            f"--metrics={','.join(config.metrics)} needs --ref=NPZ, reference statistics, because none are known for "
            f"{config.gan_pkl or config.teacher}; or give --metrics=none"
        )
    return source
