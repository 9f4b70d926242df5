"""Reads a data set of images of one size, with optional labels, from a folder or zip in NVlabs' format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from stylegan_di.data.files import LABELS_FILE, ImageFiles, decode_image
from stylegan_di.data.labels import image_labels
from stylegan_di.dnnlib.util import UserError
from stylegan_di.labels import LabelLaw

CACHE_BYTES = 1 << 30  # a data set that decodes to no more than this is kept in memory


class ImageDataset:
    """Images of a folder or zip, sorted by name; item i is (image uint8 [C,H,W], label float32 [label_dim]).

    Safe with threads, forked and spawned workers. Files are decoded when they are first used.

    Args:
        path: folder or .zip; see `stylegan_di.data.files` for the format.
        use_labels: return the labels of dataset.json; False returns labels of length 0.
        max_size: keep at most this many images, chosen by `seed` as NVlabs' code does for equal arguments.
        xflip: append a mirrored copy of every image, which doubles the length.
        seed: seed of the choice for `max_size`.
        cache: keep decoded images in memory if all of them take at most CACHE_BYTES.
        classes: the number of classes, where the images may not have all of them; None counts up to the highest.
        any_size: images may have any size and shape, and be gray or RGB; they are not kept in memory then.

    Raises UserError, naming the file, if there are no images, if an image is damaged or of another shape than the
    first, or if labels are wanted and missing or invalid. Images after the first are checked when read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        seed: int = 0,
        cache: bool = True,
        classes: int | None = None,
        any_size: bool = False,
    ) -> None:
        self.any_size = any_size
        if max_size is not None and max_size < 1:
            raise UserError(f"max_size is {max_size}; at least one image must remain.")
        self._files = ImageFiles(path)
        self._names = self._files.image_names
        if not self._names:
            raise UserError(f"{self._files.path} holds no images; make a data set with stylegan-di dataset.")
        self.path = self._files.path
        self.name = self.path.resolve().stem
        self._shape = self._first_shape()
        self._class_names: tuple[str, ...] = ()
        self._labels = self._load_labels() if use_labels else np.zeros([len(self._names), 0], dtype=np.float32)
        found = int(self._labels.max()) + 1 if self._labels.ndim == 1 else self._labels.shape[1]
        self._label_dim = found if classes is None else classes

        chosen = np.arange(len(self._names))
        if max_size is not None and max_size < len(chosen):
            np.random.RandomState(seed % (1 << 31)).shuffle(chosen)  # numpy's old generator gives NVlabs' choice
            chosen = np.sort(chosen[:max_size])
        self._chosen = chosen
        self._xflip = xflip
        keep = cache and not any_size and len(self._names) * int(np.prod(self._shape)) <= CACHE_BYTES
        self._cache: dict[int, np.ndarray] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self._chosen) * (2 if self._xflip else 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        flipped, position = divmod(int(index) % len(self), len(self._chosen))
        number = int(self._chosen[position])
        image = self._image(number)
        return (image[:, :, ::-1] if flipped else image).copy(), self._label(number)

    @property
    def num_plain(self) -> int:
        """Number of images without their mirrored copies, which come last."""
        return len(self._chosen)

    @property
    def resolution(self) -> int:
        """Height of the images in pixels."""
        return self._shape[1]

    @property
    def width(self) -> int:
        """Width of the images in pixels; the height of square ones."""
        return self._shape[2]

    @property
    def num_channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self._shape[0]

    @property
    def label_dim(self) -> int:
        """Length of a label: the number of classes for one-hot labels; 0 without use_labels."""
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        """Whether labels are used."""
        return self.label_dim > 0

    def label_law(self) -> LabelLaw:
        """How often each label occurs among the images that are used; the data set must have labels."""
        names = self._class_names if len(self._class_names) == self.label_dim else ()
        return LabelLaw.of_labels(self._labels[self._chosen], self.label_dim, names)

    def left_out(self) -> str:
        """What else lies in the folder or zip; see `ImageFiles.left_out`."""
        return self._files.left_out()

    def content(self) -> str:
        """Identifies the data set wherever it is moved: a hash of the files' names and sizes."""
        return self._files.content()

    def fingerprint(self) -> str:
        """Identifies the data set without reading images: a hash of the files' names, sizes, times and the choice."""
        choice = f"{self._chosen.tolist()}/{self._xflip}"
        return hashlib.sha256(f"{self._files.fingerprint()}/{choice}".encode()).hexdigest()

    @property
    def is_cached(self) -> bool:
        """Whether decoded images stay in memory."""
        return self._cache is not None

    def preload(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Decodes every image once, to fill the cache and to find a damaged file now rather than hours into a training.

        progress: called after each image with the number done and the total.
        """
        for done, number in enumerate(self._chosen, start=1):
            self._image(int(number))
            progress(done, len(self._chosen))

    def _image(self, number: int) -> np.ndarray:
        cached = None if self._cache is None else self._cache.get(number)
        if cached is not None:
            return cached
        name = self._names[number]
        image = decode_image(self._files.read(name), self._files.where(name))
        if image.shape != self._shape and not self.any_size:
            raise UserError(
                f"{self._files.where(name)} is {describe_shape(image.shape)}, but {self._names[0]} is "
                f"{describe_shape(self._shape)}; all must have one shape. Remove it, or convert them with "
                "stylegan-di dataset."
            )
        if self._cache is not None:
            self._cache[number] = image
        return image

    def _first_shape(self) -> tuple[int, int, int]:
        where = self._files.where(self._names[0])
        channels, height, width = decode_image(self._files.read(self._names[0]), where).shape
        return channels, height, width

    def _label(self, number: int) -> np.ndarray:
        if self._labels.ndim == 2:
            return self._labels[number].copy()
        onehot = np.zeros(self.label_dim, dtype=np.float32)
        onehot[self._labels[number]] = 1
        return onehot

    def _load_labels(self) -> np.ndarray:
        """Returns class indices int64 [N] or vectors float32 [N, label_dim], for all images of the files."""
        found = image_labels(self._files)
        if found is None:
            raise UserError(
                f"{self._files.path} has no labels (in {self._files.where(LABELS_FILE)}); train without --cond, or "
                "make a labelled data set with stylegan-di dataset."
            )
        self._class_names = found.class_names
        return np.array(found.labels, dtype=np.int64 if isinstance(found.labels[0], int) else np.float32)


def describe_shape(shape: tuple[int, ...]) -> str:
    """Describes a shape: [3,32,32] is '32x32 RGB'."""
    return f"{shape[2]}x{shape[1]} {'gray' if shape[0] == 1 else 'RGB'}"
