"""The table of feature extractors."""

from __future__ import annotations

import os
from collections.abc import Callable

from dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.fashion import load_fashion_classifier
from stylegan_di.metrics.inception import load_inception

# name -> what opens it, with the published or shipped weights (None) or those of a file
EXTRACTORS: dict[str, Callable[[str | os.PathLike[str] | None], FeatureExtractor]] = {
    "inception": load_inception,
    "fashion": load_fashion_classifier,
}


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
