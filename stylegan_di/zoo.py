"""The table of known names of networks, references and detectors, with their URLs and what belongs to them.

A name that begins with hf: is a file of the hub (`hub`). Another is looked up first as a local file, then among the
files shipped with the package, then among the published URLs (downloaded once into the cache, see `dnnlib.download`). A
local file of a known name is used only if its hash is the known one, or if none is known; a line says so if it is not
known or wrong. A file of a published folder that is not in the table is named with its folder, as in
paper-fig11b-cifar10/cifar10u-cifar-ada-best-fid.pkl. Published files have their publishers' licences, mostly for
non-commercial use only; the terms are shown when a file is first requested.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from stylegan_di import hub
from stylegan_di.dnnlib.download import cached_path, is_url, notice_once, open_url
from stylegan_di.dnnlib.util import UserError, say, sha256_of_file

ASSETS = Path(__file__).parent / "assets"
NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/"
SG2 = NVIDIA + "stylegan2-ada-pytorch/pretrained/"
TRANSFER = SG2 + "transfer-learning-source-nets/"
EDM = NVIDIA + "edm/pretrained/"
BASELINE = EDM + "baseline/"
FID_REFS = NVIDIA + "edm/fid-refs/"
EDM2 = NVIDIA + "edm2/posthoc-reconstructions/"
EDM2_REFS = NVIDIA + "edm2/dataset-refs/"
STYLEGAN2 = NVIDIA + "stylegan2/networks/"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
DETECTORS = SG2 + "metrics/"
NGC = "https://api.ngc.nvidia.com/v2/models/nvidia/research/"
STYLEGAN3 = NGC + "stylegan3/versions/1/files/"
STYLEGAN2_NGC = NGC + "stylegan2/versions/1/files/"  # trained by stylegan3's code
NGC_METRICS = STYLEGAN3 + "metrics/"
PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
TORCHVISION = "https://download.pytorch.org/models/"
LPIPS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/"

SID = hub.PAGES + "UT-Austin-PML/SiD/resolve/main/"
DDO = hub.PAGES + "nvidia/DirectDiscriminativeOptimization/resolve/main/"
DMD2 = hub.PAGES + "tianweiy/DMD2/resolve/main/model/imagenet/"
R3GAN = hub.PAGES + "brownvc/R3GAN-"
SHIPPED = "shipped with stylegan-di, Apache-2.0 (MODEL_CARD.md)"

#: Published folders whose files may be named as FOLDER/FILE, and the URL that each is under.
FOLDERS = {
    "paper-fig7c-training-set-sweeps/": SG2,
    "paper-fig11a-small-datasets/": SG2,
    "paper-fig11b-cifar10/": SG2,
    "transfer-learning-source-nets/": SG2,
    "baseline/": EDM,
    "posthoc-reconstructions/": NVIDIA + "edm2/",
    "raw-snapshots/": NVIDIA + "edm2/",
}

#: Short names of the networks that stylegan2-ada offers as starts -> their files (known names).
TRANSFER_SOURCES = {
    "ffhq256": "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": "lsundog-res256-paper256-kimg100000-noaug.pkl",
}

#: Terms of use of files, by the beginning of their URLs.
TERMS = {
    NVIDIA + "stylegan2/": "NVIDIA Source Code License, non-commercial use only (NVlabs/stylegan2)",
    NVIDIA + "stylegan2-ada-pytorch/": "NVIDIA Source Code License, non-commercial use only (stylegan2-ada-pytorch)",
    STYLEGAN3: "NVIDIA Source Code License, non-commercial use only (NVlabs/stylegan3)",
    STYLEGAN2_NGC: "NVIDIA Source Code License, non-commercial use only (NVlabs/stylegan3)",
    NVIDIA + "edm/": "CC BY-NC-SA 4.0, non-commercial use only (NVlabs/edm)",
    NVIDIA + "edm2/": "CC BY-NC-SA 4.0, non-commercial use only (NVlabs/edm2)",
    ADM: "MIT (openai/guided-diffusion), trained on ImageNet or LSUN, whose images are for research",
    PYTORCH_FID: "Apache-2.0, converted from TensorFlow's Inception-v3 (mseitzer/pytorch-fid)",
    TORCHVISION: "BSD-3-Clause, trained on ImageNet, whose images are for research (pytorch/vision)",
    hub.PAGES + "UT-Austin-PML/SiD/": "Apache-2.0 (UT-Austin-PML/SiD); distilled from EDM's, which are CC BY-NC-SA 4.0",
    hub.PAGES + "nvidia/DirectDiscriminativeOptimization/": "CC BY-NC-SA 4.0, non-commercial use only (NVlabs/DDO)",
    hub.PAGES + "tianweiy/DMD2/": "CC BY-NC 4.0, non-commercial use only (tianweiy/DMD2)",
    R3GAN: "no licence is stated (brownvc/R3GAN)",
    LPIPS: "BSD-2-Clause (richzhang/PerceptualSimilarity)",
}


@dataclass(frozen=True)
class Entry:
    """One known file.

    `folder` is the URL it is published under, None for files shipped with the package; `label_dim` is the number of
    classes (None if the file is no network); `teacher` is the diffusion model of the same images and classes;
    `reference` names the feature statistics to measure against; `sha256` is None where it is not known; `file` is the
    published file name where it differs from `name`.
    """

    name: str
    folder: str | None
    label_dim: int | None
    teacher: str | None = None
    reference: str | None = None
    sha256: str | None = None
    file: str | None = None

    @property
    def url(self) -> str | None:
        return None if self.folder is None else self.folder + (self.file or self.name)


_FASHION, _FASHION_32, _CIFAR = "fashion-reference.npz", "fashion-32-reference.npz", "cifar10-32x32.npz"
# fmt: off
_TABLE: list[tuple[str, str | None, int | None, str | None, str | None]] = [
    # name                                       from      classes teacher                       reference
    ("fashion-gan.pkl",                          None,     10,   "fashion-teacher.pkl",           _FASHION),
    ("fashion-teacher.pkl",                      None,     10,   None,                            _FASHION),
    ("fashion-reference.npz",                    None,     None, None,                            None),
    ("fashion-32-gan.pkl",                       None,     10,   "fashion-32-teacher.pkl",        _FASHION_32),
    ("fashion-32-teacher.pkl",                   None,     10,   None,                            _FASHION_32),
    ("fashion-32-reference.npz",                 None,     None, None,                            None),
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
    ("stylegan2-cat-config-f.pkl",               STYLEGAN2, 0,   None,                            None),
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
    ("64x64_diffusion.pt",                       ADM,      1000, None,                "imagenet-64x64-baseline.npz"),
    ("128x128_diffusion.pt",                     ADM,      1000, None,                            None),
    ("256x256_diffusion.pt",                     ADM,      1000, None,                            None),
    ("256x256_diffusion_uncond.pt",              ADM,      0,    None,                            None),
    ("512x512_diffusion.pt",                     ADM,      1000, None,                            None),
    ("lsun_bedroom.pt",                          ADM,      0,    None,                            None),
    ("lsun_cat.pt",                              ADM,      0,    None,                            None),
    ("lsun_horse.pt",                            ADM,      0,    None,                            None),
    ("lsun_horse_nodropout.pt",                  ADM,      0,    None,                            None),
    ("cifar10-32x32.npz",                        FID_REFS, None, None,                            None),
    ("ffhq-64x64.npz",                           FID_REFS, None, None,                            None),
    ("afhqv2-64x64.npz",                         FID_REFS, None, None,                            None),
    ("imagenet-64x64.npz",                       FID_REFS, None, None,                            None),
    ("imagenet-64x64-baseline.npz",              FID_REFS, None, None,                            None),
    ("img64.pkl",                                EDM2_REFS, None, None,                           None),
    ("img512.pkl",                               EDM2_REFS, None, None,                           None),
    ("edm-cifar10-uncond-vp-ddo.pkl",            DDO,      0,    None,                            _CIFAR),
    ("edm-cifar10-cond-vp-ddo.pkl",              DDO,      10,   None,                            _CIFAR),
    ("edm2-img64-s-ddo.pkl",                     DDO,      1000, None,                            "img64.pkl"),
    ("edm2-img512-l-ddo.pkl",                    DDO,      1000, None,                            "img512.pkl"),
]

# EDM2's ImageNet networks, edm2-<run>-<kimg, EMA width>.pkl; those for 512 pixels generate an encoder's latents.
_EDM2_RUNS = {
    "img64-xs":         "0134217-0.110 0134217-0.175",
    "img64-s":          "1073741-0.045 1073741-0.075 1073741-0.105",
    "img64-m":          "2147483-0.060",
    "img64-l":          "1073741-0.040",
    "img64-xl":         "0671088-0.040",
    "img512-xs":        "0134217-0.125 0134217-0.165 2147483-0.045 2147483-0.135 2147483-0.150 2147483-0.200",
    "img512-s":         "2147483-0.025 2147483-0.070 2147483-0.085 2147483-0.120 2147483-0.130 2147483-0.190",
    "img512-m":         "0268435-0.155 0268435-0.205 2147483-0.015 2147483-0.030 2147483-0.100 2147483-0.155",
    "img512-l":         "1879048-0.015 1879048-0.035 1879048-0.085 1879048-0.155",
    "img512-xl":        "1342177-0.020 1342177-0.030 1342177-0.085 1342177-0.155",
    "img512-xxl":       "0939524-0.015 0939524-0.070 0939524-0.075 0939524-0.130 0939524-0.150",
    "img512-xs-uncond": "0134217-0.110 0134217-0.125 2147483-0.015 2147483-0.020 2147483-0.025 2147483-0.030 "
                        "2147483-0.035 2147483-0.045 2147483-0.085 2147483-0.150",
    "img512-s-uncond":  "2147483-0.070 2147483-0.090",
}

# SiD's students in one step (arXiv 2404.04057), <data>-alpha<1 or 1.2>: kimg of both, classes, reference.
_SID_FILES = {
    "cifar10-uncond": (416768, 403968, 0,    _CIFAR),
    "cifar10-cond":   (415744, 713312, 10,   _CIFAR),
    "ffhq64":         (453120, 498176, 0,    "ffhq-64x64.npz"),
    "afhq64":         (371712, 305664, 0,    "afhqv2-64x64.npz"),
    "imagenet64":     (492836, 939176, 1000, "imagenet-64x64.npz"),
}

# R3GAN's generators (arXiv 2501.05441): file, classes, teacher, reference, SHA-256 where it is known.
_R3GAN_FILES: dict[str, tuple[str, int, str | None, str | None, str | None]] = {
    "CIFAR10":      ("network-snapshot-final.pkl", 10,   "edm-cifar10-32x32-cond-vp.pkl",  _CIFAR,           None),
    "FFHQ-64x64":   ("network-snapshot-final.pkl", 0,    "edm-ffhq-64x64-uncond-vp.pkl",   "ffhq-64x64.npz", None),
    "FFHQ-256x256": ("network-snapshot-final.pkl", 0,    None,                             None,
                     "2e8e6ba20ff42766fb21b67dd45ae865da29dc00b7dab890be16735e3fb8fc5d"),
    "ImgNet-32x32": ("ImageNet-32x32.pkl",         1000, None,                             None,             None),
    "ImgNet-64x64": ("network-snapshot-final.pkl", 1000, None,                    "imagenet-64x64.npz",      None),
}

# DMD2's students on ImageNet at 64x64 (arXiv 2405.14867) by their FID: state dicts.
_DMD2_FILES = {
    "1.28": "imagenet_gan_classifier_genloss3e-3_diffusion1000_lr5e-7_resume_fid1.28_checkpoint_model_548000",
    "1.51": "imagenet_gan_classifier_genloss3e-3_diffusion1000_lr2e-6_scratch_fid1.51_checkpoint_model_193500",
    "2.61": "imagenet_lr2e-6_scratch_fid2.61_checkpoint_model_405500",
}

# The networks that stylegan3's authors published, <configuration>-<images>.pkl; all are unconditional.
_STYLEGAN3_FILES = {
    "stylegan3-t stylegan3-r": "ffhq-1024x1024 ffhqu-1024x1024 ffhqu-256x256 metfaces-1024x1024 metfacesu-1024x1024 "
                               "afhqv2-512x512",
    "stylegan2":               "ffhq-1024x1024 ffhq-512x512 ffhq-256x256 ffhqu-1024x1024 ffhqu-256x256 "
                               "metfaces-1024x1024 metfacesu-1024x1024 afhqv2-512x512 afhqcat-512x512 afhqdog-512x512 "
                               "afhqwild-512x512 brecahad-512x512 celebahq-256x256 lsundog-256x256",
}
# fmt: on


def _entries() -> dict[str, Entry]:
    found = [Entry(*row) for row in _TABLE]
    for run, names in _EDM2_RUNS.items():
        label_dim, reference = 0 if "uncond" in run else 1000, run.partition("-")[0] + ".pkl"
        found += [Entry(f"edm2-{run}-{name}.pkl", EDM2, label_dim, None, reference) for name in names.split()]
    for configurations, images in _STYLEGAN3_FILES.items():
        folder = STYLEGAN2_NGC if configurations == "stylegan2" else STYLEGAN3
        for configuration in configurations.split():
            found += [Entry(f"{configuration}-{name}.pkl", folder, 0) for name in images.split()]
    for data, (first, second, label_dim, own) in _SID_FILES.items():
        for alpha, kimg in ((1.0, first), (1.2, second)):
            file = f"{data}/alpha{alpha:g}/network-snapshot-{alpha:.6f}-{kimg}.pkl"
            found.append(Entry(f"sid-{data}-alpha{alpha:g}.pkl", SID, label_dim, None, own, file=file))
    for data, (file, label_dim, teacher, ref, sha256) in _R3GAN_FILES.items():
        folder = f"{R3GAN}{data}/resolve/main/"
        found.append(Entry(f"r3gan-{data.lower()}.pkl", folder, label_dim, teacher, ref, sha256, file))
    for fid, run in _DMD2_FILES.items():
        name, file = f"dmd2-imagenet64-fid{fid}.bin", f"{run}/pytorch_model.bin"
        found.append(Entry(name, DMD2, 1000, None, "imagenet-64x64.npz", file=file))
    found += [  # detectors; NVIDIA publishes no hashes, and two of its three files are not used here (docs/metrics.md)
        Entry("vgg16.pt", DETECTORS, None),
        Entry("inception-2015-12-05.pkl", NGC_METRICS, None),
        Entry("pt_inception-2015-12-05-6726825d.pth", PYTORCH_FID, None,
              sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        Entry("inception-2015-12-05.pt", DETECTORS, None,
              sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
        Entry("vgg16-397923af.pth", TORCHVISION, None,
              sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
        Entry("lpips-vgg.pth", LPIPS, None, file="vgg.pth",
              sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    ]  # fmt: skip
    return {entry.name: entry for entry in found}


ENTRIES = _entries()

_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
#: What the classes of labelled data sets are called, by the reference statistics of their networks.
CLASS_NAMES = {
    _FASHION: _CLOTHES,
    _FASHION_32: _CLOTHES,
    _CIFAR: ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(name_path_or_url: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns what the classes of a known network are called; () for other files."""
    known = entry(name_path_or_url)
    return () if known is None else CLASS_NAMES.get(known.reference or "", ())


def entry(name_path_or_url: str | os.PathLike[str]) -> Entry | None:
    """Returns the entry of a file name, wherever the file itself is; None for unknown names."""
    return ENTRIES.get(os.fspath(name_path_or_url).replace("\\", "/").rsplit("/", 1)[-1])


def resolve(name_path_or_url: str | os.PathLike[str]) -> Path:
    """Returns the local file of a path, a URL, a known name or a name of the hub; downloads the latter if necessary.

    The first use of a published name or URL shows its terms on stderr.

    Raises:
        UserError: if there is no such file or name, or it cannot be fetched.
    """
    text = os.fspath(name_path_or_url)
    if text.startswith(hub.HUB):
        _show_terms(hub.parse(text).page)
        return hub.fetch(text)
    known = entry(text) if is_url(text) else _known(text)
    if is_url(text):
        _show_terms(text)
        return open_url(text, sha256=known.sha256 if known is not None and known.url == text else None)
    if known is not None and known.url is not None:
        _show_terms(known.url)
    if Path(text).is_file() and (known is None or _is_meant(Path(text), known)):
        return Path(text)
    if known is None:
        raise UserError(f"{text}: {_unknown(text)}")
    if (ASSETS / text).is_file():
        return ASSETS / text
    if known.url is None:
        raise UserError(f"{text}: this file comes with the package but is missing; put it at {ASSETS / text}.")
    return open_url(known.url, sha256=known.sha256)


def published(name: str, copy: str | os.PathLike[str] | None = None) -> Path:
    """Returns the file of a detector in the table, after checking its hash.

    Args:
        copy: the path, URL or known name of a copy; None downloads the published file.

    Raises:
        UserError: if the file cannot be fetched, or the copy is a different file.
    """
    known = ENTRIES[name]
    if copy is not None:
        return open_url(copy, sha256=known.sha256)
    try:
        return resolve(name)
    except UserError as error:
        raise UserError(
            f"{error} (Metrics need these weights; --detector-file names a local copy, and a training with "
            "--metrics=none does without.)"
        ) from None


def is_local(name_path_or_url: str | os.PathLike[str]) -> bool:
    """Returns whether `resolve` needs no download; also true for a file that does not exist at all."""
    text = os.fspath(name_path_or_url)
    if text.startswith(hub.HUB):
        return hub.is_cached(text)
    known = None if is_url(text) else _known(text)
    url = text if is_url(text) else None if known is None else known.url
    return url is None or any(path.is_file() for path in (Path(text), ASSETS / text, cached_path(url)))


def _is_meant(path: Path, known: Entry) -> bool:
    """Whether a local file of a known name is used; says so where that is not certain."""
    shipped = ASSETS / known.name
    expected = sha256_of_file(shipped) if shipped.is_file() else known.sha256
    if expected is None:
        say(f"{path}: the file of this name here is used; whether it is the published one cannot be told")
        return True
    if sha256_of_file(path) == expected:
        return True
    kind = "shipped" if shipped.is_file() else "published"
    say(f"{path}: the file of this name here is not the {kind} one, which is used; write {path.absolute()} for yours")
    return False


def _known(text: str) -> Entry | None:
    """Returns the entry of a name, or of a file named with its published folder."""
    if text in ENTRIES:
        return ENTRIES[text]
    for folder, root in FOLDERS.items():
        if re.fullmatch(re.escape(folder) + r"([\w.-]+/)*[\w.-]+\.pkl", text) and ".." not in text:
            return Entry(text, root, None)
    return None


def terms_of(name_path_or_url: str) -> str:
    """Returns origin and terms of a known name, a published URL or a name of the hub; '' where they are not known."""
    if name_path_or_url.startswith(hub.HUB):
        try:
            return _terms(hub.parse(name_path_or_url).page)[1]
        except UserError:  # a file may name anything as where it comes from
            return ""
    known = entry(name_path_or_url)
    if known is not None and known.url is None:
        return SHIPPED
    return _terms(name_path_or_url if known is None or known.url is None else known.url)[1]


def _terms(url: str) -> tuple[str, str]:
    """The beginning of the URLs of files that are published together, and their terms."""
    return next(((beginning, terms) for beginning, terms in TERMS.items() if url.startswith(beginning)), (url, ""))


def _show_terms(url: str) -> None:
    beginning, terms = _terms(url)
    if not terms and not url.startswith(hub.PAGES):
        return
    key = re.sub(r"\W+", "-", beginning.split("://")[1]).strip("-")
    notice_once(key, f"Terms of {url} and the files beside it: {terms or 'see its page'}. This is shown once.")


def _unknown(text: str) -> str:
    if Path(text).is_dir():
        best = ", such as network-best.pkl" if (Path(text) / "network-best.pkl").is_file() else ""
        return f"this is a folder; pass a file in it{best}."
    near = difflib.get_close_matches(Path(text).name, ENTRIES, n=3, cutoff=0.5)
    names = f"; known names like it: {', '.join(near)}" if near else ""
    return f"there is no such file{names}. Pass the path of a file, a URL, or a known name such as cifar10.pkl."
