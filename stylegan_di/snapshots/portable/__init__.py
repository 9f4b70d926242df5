"""Sources of networks that go into network files, so that these open in tools that do not know this project.

A pickle in NVlabs' format carries the source of its classes, which NVlabs' loader runs. Each module here is such a
source, one a family of networks, by itself and with nothing but PyTorch; what it computes is tested against our
networks. It reads the attributes of our networks' classes, which have the names of NVlabs' format, and no others.

A pickle can also name NVlabs' own classes in one import line. It then opens in their repository alone, and runs on
their kernels there.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType

from stylegan_di.snapshots.portable import edm, edm2, stylegan2, stylegan3
from stylegan_di.torch_utils.persistence import import_line

_NETWORKS, _AUGMENT = "training.networks", "training.augment"
#: Our module -> the portable source of its classes, and the module of NVlabs' repository that has them.
_FAMILIES: dict[str, tuple[ModuleType, str]] = {
    "stylegan_di.networks.stylegan2": (stylegan2, _NETWORKS),
    "stylegan_di.networks.stylegan2_layers": (stylegan2, _NETWORKS),
    "stylegan_di.networks.stylegan3": (stylegan3, "training.networks_stylegan3"),
    "stylegan_di.networks.stylegan3_layers": (stylegan3, "training.networks_stylegan3"),
    "stylegan_di.networks.edm": (edm, _NETWORKS),
    "stylegan_di.networks.edm_layers": (edm, _NETWORKS),
    "stylegan_di.networks.edm_unets": (edm, _NETWORKS),
    "stylegan_di.networks.edm2": (edm2, "training.networks_edm2"),
    "stylegan_di.data.augment": (stylegan2, _AUGMENT),
    "stylegan_di.data.augment_edm": (edm, _AUGMENT),
}
#: Repositories of NVlabs' that have StyleGAN2's networks -> the module that has them.
STYLEGAN2_MODULES = {"stylegan2-ada": _NETWORKS, "stylegan3": "training.networks_stylegan2"}

_source = functools.cache(inspect.getsource)


def portable_source(cls: type) -> str:
    """Returns the self-contained source of a class; for those that no other project has, a line that imports ours."""
    return _source(_FAMILIES[cls.__module__][0]) if cls.__module__ in _FAMILIES else import_line(cls)


def nvlabs_source(cls: type, repository: str) -> str:
    """Returns a line that imports the class from one of STYLEGAN2_MODULES' repositories, from ours if it has none."""
    if cls.__module__ not in _FAMILIES:
        return import_line(cls)
    family, module = _FAMILIES[cls.__module__]
    is_network = family is stylegan2 and module == _NETWORKS
    return f"from {STYLEGAN2_MODULES[repository] if is_network else module} import *\n"
