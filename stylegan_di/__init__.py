"""Make the GAN you already have better with the diffusion model you already have, with no data."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylegan_di.dnnlib.util import UserError
    from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator
    from stylegan_di.torch_utils.persistence import RefusedFileError

__all__ = ["RefusedFileError", "UserError", "load_denoiser", "load_generator"]

# In a clone, links in this folder lead to dnnlib and torch_utils beside it; git on Windows writes files in their place.
if not os.path.isdir(os.path.join(__path__[0], "dnnlib")):
    __path__.append(os.path.dirname(__path__[0]))

_HOMES = {
    "RefusedFileError": "stylegan_di.torch_utils.persistence",
    "UserError": "stylegan_di.dnnlib.util",
    "load_denoiser": "stylegan_di.snapshots.checkpoint",
    "load_generator": "stylegan_di.snapshots.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that importing one small module does not import the networks."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
