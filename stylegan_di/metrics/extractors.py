"""The table of feature extractors, and the files of their weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.dinov2 import load_dinov2
from stylegan_di.metrics.efficientnet import load_efficientnet
from stylegan_di.metrics.fashion import load_fashion_classifier
from stylegan_di.metrics.inception import load_inception
from stylegan_di.metrics.spectrum import Spectrum
from stylegan_di.metrics.texture import Texture
from stylegan_di.metrics.vgg16 import load_vgg16

# name -> function that opens it with the weights in a file, or for None with the published or shipped ones
EXTRACTORS: dict[str, Callable[[str | os.PathLike[str] | None], FeatureExtractor]] = {
    "inception": load_inception,
    "vgg16": load_vgg16,
    "dinov2": load_dinov2,
    "fashion": load_fashion_classifier,
    "efficientnet_lite0": load_efficientnet,
    "spectrum": lambda file: _without_weights(Spectrum(), file),
    "texture": lambda file: _without_weights(Texture(), file),
}
SHIPPED = ("fashion", "efficientnet_lite0", "spectrum", "texture")  # weights come with a package, or there are none


def open_extractor(name: str, detector_file: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """Opens an extractor by its name, in evaluation mode, without gradients, on the CPU.

    Args:
        detector_file: file of its weights, None for the published or shipped ones.

    Raises:
        UserError: if the name is unknown, or the file is missing or holds something else.
    """
    if name not in EXTRACTORS:
        raise UserError(f"there is no feature extractor {name!r}; known are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](detector_file)


def detector_files(option: str | os.PathLike[str] | None, uses: Sequence[str]) -> dict[str, str]:
    """Parses the value of --detector-file into files of weights, by the name of their network.

    Args:
        option: 'FILE' if only one network that the metrics use needs a file, else 'inception=FILE,vgg16=FILE'.
        uses: names of the networks that the metrics use.

    Raises:
        UserError: for a file that no metric uses, or that could belong to several networks.
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


def _without_weights(extractor: FeatureExtractor, file: str | os.PathLike[str] | None) -> FeatureExtractor:
    if file is not None:
        raise UserError(f"--detector-file={os.fspath(file)}: {extractor.name} has no weights; leave it out")
    return extractor.eval()
