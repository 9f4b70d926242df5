"""Presets: the options of each --kind, of each --cfg, and of known GANs and teachers.

StyleGAN2-ADA's presets are from arXiv 2006.06676 and its code, EDM's from arXiv 2206.00364, appendix F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stylegan_di.dnnlib.util import UserError, did_you_mean

#: Defaults of each kind that differ from TrainConfig's.
KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "edm": dict(batch=512, kimg=200000.0, lr_rampup=10000.0, beta1=0.9, beta2=0.999, ema=500.0, metrics=()),
    "gan": dict(tick=4.0),
    "di":  dict(batch=128, kimg=10000.0, lr=1e-5, beta2=0.999, ema=500.0, aug="noaug"),
}  # fmt: skip

# --kind=edm: --cfg or --arch.

# fmt: off
_EDM_COLUMNS =   ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
_EDM_TABLE: dict[str, tuple[Any, ...]] = {
    "ddpmpp":    (128,              (2, 2, 2),      4,            (16,),              0.13),
    "ncsnpp":    (128,              (2, 2, 2),      4,            (16,),              0.13),
    "adm":       (192,              (1, 2, 3, 4),   3,            (32, 16, 8),        0.13),
}
EDM_PRESETS = {arch: dict(zip(_EDM_COLUMNS, row, strict=True)) for arch, row in _EDM_TABLE.items()}

#: The network's constructor arguments for each architecture.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp":    dict(model_type="SongUNet", embedding_type="positional", encoder_type="standard",
                      decoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1]),
    "ncsnpp":    dict(model_type="SongUNet", embedding_type="fourier", encoder_type="residual",
                      decoder_type="standard", channel_mult_noise=2, resample_filter=[1, 3, 3, 1]),
    "adm":       dict(model_type="DhariwalUNet"),
}

# --kind=gan: --cfg. `gpus` is the number of GPUs a preset was made for; each computes batch / gpus images at a time.

_GAN_COLUMNS =   ("gpus", "kimg",   "batch", "mbstd_group", "cbase", "lr",   "gamma", "ema", "ema_rampup", "map_depth")
_GAN_TABLE: dict[str, tuple[Any, ...]] = {
    "stylegan2": (8,      25000.0,  32,      4,             32768,   0.002,  10.0,    10.0,  None,         8),
    "paper256":  (8,      25000.0,  64,      8,             16384,   0.0025, 1.0,     20.0,  None,         8),
    "paper512":  (8,      25000.0,  64,      8,             32768,   0.0025, 0.5,     20.0,  None,         8),
    "paper1024": (8,      25000.0,  32,      4,             32768,   0.002,  2.0,     10.0,  None,         8),
    "cifar":     (2,      100000.0, 64,      32,            32768,   0.0025, 0.01,    500.0, 0.05,         2),
}
# fmt: on
_CIFAR = dict(pl_weight=0.0, mixing=0.0, d_arch="orig")
FP16_RES = 4  # how many of the highest resolutions are computed in float16 on CUDA

#: --cfg of StyleGAN3: the factor on its generator's channels, and its further arguments (arXiv 2106.12423).
STYLEGAN3: dict[str, tuple[int, dict[str, Any]]] = {
    "stylegan3-t": (1, {}),
    "stylegan3-r": (2, dict(conv_kernel=1, use_radial_filters=True)),
}
R3GAN = "r3gan"
#: R3GAN's numbers by resolution (Huang et al. 2024, arXiv 2501.05441): batch, gamma, p, EMA in kimg, float16 stages.
_R3GAN_TABLE = {32: (512, 0.05, 0.55, 5000.0, 3), 64: (256, 2.0, 0.3, 500.0, 4), 256: (256, 150.0, 0.3, 500.0, 4)}
GAN_PRESETS = ("auto", *_GAN_TABLE, *STYLEGAN3, R3GAN)
BY_RESOLUTION = ("auto", *STYLEGAN3, R3GAN)  # whose numbers depend on the images


def gan_preset(cfg: str, *, resolution: int, gpus: int, batch: int | None, cuda: bool) -> dict[str, Any]:
    """Returns the options of StyleGAN2-ADA's preset `cfg`.

    Args:
        cfg: one of GAN_PRESETS.
        resolution: the images' resolution, used by BY_RESOLUTION.
        gpus: number of processes, used by 'auto'.
        batch: images per step, from which these derive gamma, ema and mbstd_group; None for the preset's.
        cuda: whether to compute the highest resolutions in float16.
    """
    fp16 = dict(fp16_res=FP16_RES if cuda else 0)
    if cfg == "auto":
        size = batch or max(min(gpus * min(4096 // resolution, 32), 64), gpus)
        options = dict(
            kimg=25000.0, batch=size, mbstd_group=max(min(size // gpus, 4), 1),
            cbase=32768 if resolution >= 512 else 16384, lr=0.002 if resolution >= 1024 else 0.0025,
            gamma=0.0002 * resolution**2 / size, ema=size * 10 / 32, ema_rampup=0.05, map_depth=2,
        )  # fmt: skip
        return options | fp16
    if cfg == R3GAN:
        size, gamma, p, ema, stages = _R3GAN_TABLE.get(resolution, (256, None, 0.3, 500.0, FP16_RES))
        return dict(
            kimg=25000.0, batch=size, cbase=24576, cmax=768, w_dim=64, lr=2e-4, gamma=gamma, ema=ema, ema_rampup=None,
            anneal=20000.0, aug="fixed", augpipe=R3GAN, p=p, pl_weight=0.0, mixing=0.0, fp16_res=stages if cuda else 0,
        )  # fmt: skip
    if cfg in STYLEGAN3:
        size = batch or 32
        options = dict(
            kimg=25000.0, batch=size, mbstd_group=4, cbase=32768, lr=0.0025, dlr=0.002,
            gamma=0.001 * resolution**2 / size, ema=size * 10 / 32, ema_rampup=0.05, map_depth=2, pl_weight=0.0,
            mixing=0.0,
        )  # fmt: skip
        blur = dict(blur_sigma=10.0, blur_fade=size * 200 / 32) if cfg == "stylegan3-r" else {}
        return options | blur | fp16
    options = dict(zip(_GAN_COLUMNS, _GAN_TABLE[cfg], strict=True))
    options["batch_gpu"] = options["batch"] // options.pop("gpus")
    return options | (_CIFAR if cfg == "cifar" else {}) | fp16


# --kind=di: --cfg, or the recipe of a known GAN or teacher.


#: What a training by --kind=di is for.
REFINEMENT, DISTILLATION, REFINER, NEW_NETWORK = "refinement", "distillation", "a refiner", "a new network"


def use_of(student: str | None, gan_pkl: str | None) -> str:
    """What a training with this --student and --gan-pkl is for, None where they are not given."""
    if student in (None, "auto"):
        return DISTILLATION if gan_pkl is None else REFINEMENT
    return REFINER if student == "refiner" else NEW_NETWORK


@dataclass(frozen=True)
class Recipe:
    """Options for a known teacher.

    `gan` is the known GAN of the same images, if there is one; `uses` the options of each use that has some; `measured`
    the uses whose results were measured with this code; `source` says where the options come from.
    """

    teacher: str
    gan: str | None
    uses: Mapping[str, Mapping[str, Any]]
    measured: tuple[str, ...]
    source: str

    def note(self, use: str, changes: str = "") -> str:
        """Returns 'refinement, measured here: ...' or the like, for the header of a run with some options changed."""
        measured = "measured here" if use in self.measured else "not measured here"
        if not changes:
            return f"{use}, {measured}: {self.source}"
        return f"{use} with {changes}; {measured}{' without these' if use in self.measured else ''}: {self.source}"


_FASHION: dict[str, Any] = dict(
    batch=32, beta2=0.999, lr_decay=0.5, ema=5.0, tick=2.0, snap=100, metrics=("fd_fashion", "pr_fashion"),
    metric_samples=10000,
)  # fmt: skip
_FASHION_USES: dict[str, dict[str, Any]] = {
    REFINEMENT: _FASHION | dict(
        kimg=30.0, divergence="sid", lr=2e-3, fake_lr=1.5e-3, dlr=2e-3, gamma=0.05, whitening=1.0, clip=True,
        clip_return=0.0, headroom=500,
    ),
    DISTILLATION: _FASHION | dict(kimg=24.0, lr=5e-4, clip=True, clip_return=0.0),
    REFINER: _FASHION | dict(
        kimg=28.0, lr=1e-3, fake_lr=1e-3, dlr=2e-3, gamma=0.05, clip=True, clip_return=0.0, headroom=500
    ),
    NEW_NETWORK: _FASHION | dict(kimg=44.0, lr=2e-3, fake_lr=1.5e-3),
}  # fmt: skip

_FASHION_32_USES: dict[str, dict[str, Any]] = {
    REFINEMENT: _FASHION | dict(
        kimg=20.0, divergence="ikl", lr=2e-3, fake_lr=1.5e-3, whitening=1.0, clip=True, headroom=500,
        force=True,  # the GAN's classes are hard to tell apart
    ),
}  # fmt: skip

# Diff-Instruct's published settings for distillation (arXiv 2305.18455 and its code) are these together with
# KIND_DEFAULTS' Adam(0, 0.999), lr 1e-5, batch 128, EMA half-life 500 kimg. None are published for refining GANs.
_PAPERS: dict[str, dict[str, Any]] = {DISTILLATION: dict(sigma_init=1.0)}
_PAPER = "the settings of Diff-Instruct's code for distillation; for refinement none are published"
_ALIKE = "as CIFAR-10's; Diff-Instruct published no result here"
_ALL = tuple(_FASHION_USES)
_HERE = "docs/demo.md and docs/measurements/generators.md"

# fmt: off
RECIPES: dict[str, Recipe] = {
    # name                    teacher                            GAN                uses           measured
    "fashion":        Recipe("fashion-teacher.pkl",             "fashion-gan.pkl", _FASHION_USES, _ALL,
                             _HERE),
    "fashion-32":     Recipe("fashion-32-teacher.pkl",          "fashion-32-gan.pkl", _FASHION_32_USES, (REFINEMENT,),
                             "docs/demo.md"),
    "cifar10-uncond": Recipe("edm-cifar10-32x32-uncond-vp.pkl", None,              _PAPERS,       (), _PAPER),
    "cifar10-cond":   Recipe("edm-cifar10-32x32-cond-vp.pkl",   "cifar10.pkl",     _PAPERS,       (), _PAPER),
    "imagenet64":     Recipe("edm-imagenet-64x64-cond-adm.pkl", None,              _PAPERS,       (), _PAPER),
    "ffhq64":         Recipe("edm-ffhq-64x64-uncond-vp.pkl",    None,              _PAPERS,       (), _ALIKE),
    "afhqv2-64":      Recipe("edm-afhqv2-64x64-uncond-vp.pkl",  None,              _PAPERS,       (), _ALIKE),
}
# fmt: on


def recipe_name(known_name: str) -> str | None:
    """Returns the recipe's name for the file name of a known GAN or teacher, None for others."""
    return next((name for name, recipe in RECIPES.items() if known_name in (recipe.gan, recipe.teacher)), None)


def check_cfg(kind: str, cfg: str) -> None:
    """Raises UserError if the kind has no such --cfg."""
    accepted: dict[str, tuple[str, ...]] = {"gan": GAN_PRESETS, "edm": tuple(EDM_PRESETS), "di": tuple(RECIPES)}
    if cfg not in accepted[kind]:
        others = [other for other, names in accepted.items() if cfg in names]
        hint = f" ({cfg} is for --kind={others[0]})" if others else did_you_mean(cfg, accepted[kind])
        raise UserError(f"--cfg={cfg}: accepted for --kind={kind} are {', '.join(accepted[kind])}{hint}")
