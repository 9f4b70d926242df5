"""Known names of networks and references: where each comes from, and what goes with it.

A name is looked up as a local file first, then among the files shipped with the package, then among the published
URLs (downloaded once into the cache). Published networks have NVIDIA's licences, for non-commercial use.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from dnnlib.util import UserError, is_url, open_url

ASSETS = Path(__file__).parent / "assets"
SG2 = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
TRANSFER = SG2 + "transfer-learning-source-nets/"
EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
BASELINE = EDM + "baseline/"
FID_REFS = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"


@dataclass(frozen=True)
class Entry:
    """One known file.

    `folder` is the URL it is published under, None for files shipped with the package; `label_dim` the number of
    classes (None: no network); `teacher` the diffusion model of the same images and classes; `reference` the feature
    statistics to measure against; `sha256` of the contents, None where it is not known.
    """

    name: str
    folder: str | None
    label_dim: int | None
    teacher: str | None
    reference: str | None
    sha256: str | None = None

    @property
    def url(self) -> str | None:
        return None if self.folder is None else self.folder + self.name


_FASHION, _CIFAR = "fashion-reference.npz", "cifar10-32x32.npz"
# fmt: off
_TABLE: list[tuple[str, str | None, int | None, str | None, str | None]] = [
    # name                                       from      classes teacher                       reference
    ("fashion-gan.pkl",                          None,     10,   "fashion-teacher.pkl",           _FASHION),
    ("fashion-teacher.pkl",                      None,     10,   None,                            _FASHION),
    ("fashion-reference.npz",                    None,     None, None,                            None),
    ("fashion-classifier.safetensors",           None,     None, None,                            None),
    ("cifar10.pkl",                              SG2,      10,   "edm-cifar10-32x32-cond-vp.pkl", _CIFAR),
    ("ffhq.pkl",                                 SG2,      0,    None,                            None),
    ("metfaces.pkl",                             SG2,      0,    None,                            None),
    ("afhqcat.pkl",                              SG2,      0,    None,                            None),
    ("afhqdog.pkl",                              SG2,      0,    None,                            None),
    ("afhqwild.pkl",                             SG2,      0,    None,                            None),
    ("brecahad.pkl",                             SG2,      0,    None,                            None),
    ("ffhq-res256-mirror-paper256-noaug.pkl",    TRANSFER, 0,    None,                            None),
    ("ffhq-res512-mirror-stylegan2-noaug.pkl",   TRANSFER, 0,    None,                            None),
    ("ffhq-res1024-mirror-stylegan2-noaug.pkl",  TRANSFER, 0,    None,                            None),
    ("celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl", TRANSFER, 0, None,              None),
    ("lsundog-res256-paper256-kimg100000-noaug.pkl", TRANSFER, 0,   None,                            None),
    ("edm-cifar10-32x32-cond-vp.pkl",            EDM,      10,   None,                            _CIFAR),
    ("edm-cifar10-32x32-cond-ve.pkl",            EDM,      10,   None,                            _CIFAR),
    ("edm-cifar10-32x32-uncond-vp.pkl",          EDM,      0,    None,                            _CIFAR),
    ("edm-cifar10-32x32-uncond-ve.pkl",          EDM,      0,    None,                            _CIFAR),
    ("edm-ffhq-64x64-uncond-vp.pkl",             EDM,      0,    None,                            "ffhq-64x64.npz"),
    ("edm-ffhq-64x64-uncond-ve.pkl",             EDM,      0,    None,                            "ffhq-64x64.npz"),
    ("edm-afhqv2-64x64-uncond-vp.pkl",           EDM,      0,    None,                            "afhqv2-64x64.npz"),
    ("edm-afhqv2-64x64-uncond-ve.pkl",           EDM,      0,    None,                            "afhqv2-64x64.npz"),
    ("edm-imagenet-64x64-cond-adm.pkl",          EDM,      1000, None,                            "imagenet-64x64.npz"),
    ("baseline-cifar10-32x32-uncond-vp.pkl",     BASELINE, 0,    None,                            _CIFAR),
    ("baseline-cifar10-32x32-uncond-ve.pkl",     BASELINE, 0,    None,                            _CIFAR),
    ("baseline-imagenet-64x64-cond-adm.pkl",     BASELINE, 1000, None,                "imagenet-64x64-baseline.npz"),
    ("cifar10-32x32.npz",                        FID_REFS, None, None,                            None),
    ("ffhq-64x64.npz",                           FID_REFS, None, None,                            None),
    ("afhqv2-64x64.npz",                         FID_REFS, None, None,                            None),
    ("imagenet-64x64.npz",                       FID_REFS, None, None,                            None),
    ("imagenet-64x64-baseline.npz",              FID_REFS, None, None,                            None),
]
# fmt: on
_SHA256: dict[str, str] = {}  # by name, where known; NVIDIA publishes none
ENTRIES = {row[0]: Entry(*row, sha256=_SHA256.get(row[0])) for row in _TABLE}


def entry(name_path_or_url: str | os.PathLike[str]) -> Entry | None:
    """What is known of a network by its file name, wherever the file itself lies; None for other names."""
    return ENTRIES.get(os.fspath(name_path_or_url).replace("\\", "/").rsplit("/", 1)[-1])


def resolve(name_path_or_url: str | os.PathLike[str]) -> Path:
    """The local file of a path, a URL or a known name; the latter two are downloaded where needed.

    Raises:
        UserError: if there is no such file and no such name, or it cannot be fetched.
    """
    text = os.fspath(name_path_or_url)
    if is_url(text):
        known = entry(text)
        return open_url(text, sha256=known.sha256 if known is not None and known.url == text else None)
    if Path(text).is_file():
        return Path(text)
    known = ENTRIES.get(text)
    if known is None:
        raise UserError(f"{text}: {_unknown(text)}")
    if (ASSETS / text).is_file():
        return ASSETS / text
    if known.url is None:
        raise UserError(f"{text}: this file comes with the package but is missing; put it at {ASSETS / text}.")
    return open_url(known.url, sha256=known.sha256)


def _unknown(text: str) -> str:
    if Path(text).is_dir():
        return "this is a folder; pass a file in it."
    near = difflib.get_close_matches(Path(text).name, ENTRIES, n=3, cutoff=0.5)
    names = f"; known names like it: {', '.join(near)}" if near else ""
    return f"there is no such file{names}. Pass the path of a file, a URL, or a known name such as cifar10.pkl."
