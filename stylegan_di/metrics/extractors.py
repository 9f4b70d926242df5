"""The table of feature extractors, and the files of their weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.dinov2 import load_dinov2
from stylegan_di.metrics.fashion import load_fashion_classifier
from stylegan_di.metrics.inception import load_inception
from stylegan_di.metrics.vgg16 import load_vgg16

# name -> what opens it, with the published or shipped weights (None) or those of a file
EXTRACTORS: dict[str, Callable[[str | os.PathLike[str] | None], FeatureExtractor]] = {
    "inception": load_inception,
    "vgg16": load_vgg16,
    "dinov2": load_dinov2,
    "fashion": load_fashion_classifier,
}
SHIPPED = ("fashion",)  # whose weights need no file


def open_extractor(name: str, detector_file: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """The extractor of a name, in evaluation mode, without gradients, on the CPU.

    Args:
        detector_file: its weights, None for the published or shipped ones.

    Raises:
        UserError: if the name is unknown, or the weights are missing or of something else.
    """
    if name not in EXTRACTORS:
        raise UserError(f"there is no feature extractor {name!r}; known are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](detector_file)


def detector_files(option: str | os.PathLike[str] | None, uses: Sequence[str]) -> dict[str, str]:
    """The value of --detector-file, files of weights by what they are of.

    Args:
        option: 'FILE' where the metrics use one network whose weights are not shipped, or 'inception=FILE,vgg16=FILE'.
        uses: the networks that the metrics use.

    Raises:
        UserError: for files that no metric uses, or that could be of several networks.
    """
    if option is None:
        return {}
    needed = [name for name in uses if name not in SHIPPED]
    found: dict[str, str] = {}
    for part in os.fspath(option).split(","):
        name, separator, file = part.partition("=")
        if not separator:
            if len(needed) != 1:
                named = ",".join(f"{name}=FILE" for name in needed) or "none"
                raise UserError(f"--detector-file={part}: of which network? The metrics asked for accept {named}")
            name, file = needed[0], part
        if name not in uses:
            raise UserError(f"--detector-file={part}: the metrics asked for do not use {name}, only {', '.join(uses)}")
        found[name] = file
    return found
