"""What a training run is, as one validated value, and the tables of defaults and recipes it is filled from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dnnlib.util import UserError

Kind = Literal["edm", "gan", "di"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Names are those of the command line's options, where `python train.py --help` explains them."""

    kind: Kind
    outdir: str = "runs"
    desc: str = ""
    # Inputs.
    data: str | None = None
    cond: bool = False
    mirror: bool = False
    gan_pkl: str | None = None
    teacher: str | None = None
    ref: str | None = None
    detector_file: str | None = None
    resume: str | None = None
    # The run.
    seed: int = 0
    device: str = "cpu"
    gpus: int | None = None
    workers: int = 1
    batch: int = 64
    batch_gpu: int | None = None
    kimg: float = 25000.0
    tick: float = 50.0
    snap: int = 50
    state: int = 5
    snap_format: Literal["pkl", "safetensors"] = "pkl"
    metrics: tuple[str, ...] = ("fid50k_full",)
    metric_samples: int = 50000
    max_skips: int = 10
    on_divergence: Literal["abort", "best"] = "abort"
    # Optimisation.
    lr: float = 1e-3
    lr_rampup: float = 0.0
    lr_decay: float | None = None
    beta1: float = 0.0
    beta2: float = 0.99
    ema: float = 10.0
    ema_rampup: float | None = 0.05
    P_mean: float = -1.2
    P_std: float = 1.2
    # --kind=edm.
    arch: Literal["ddpmpp", "ncsnpp", "adm"] = "ddpmpp"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    label_dropout: float = 0.0
    # --kind=gan, and --kind=di with --adv-weight.
    cbase: int = 16384
    cmax: int = 512
    w_dim: int = 512
    map_depth: int = 2
    noise_inputs: bool = True
    fp16_res: int = 0
    mixing: float = 0.9
    pl_weight: float = 2.0
    pl_interval: int = 4
    gamma: float | None = None
    r1_interval: int = 16
    dlr: float | None = None
    aug: Literal["noaug", "ada", "fixed"] = "ada"
    augpipe: str = "bgc"
    p: float = 0.0
    target: float = 0.6
    ada_kimg: float = 500.0
    mbstd_group: int = 4
    # --kind=di.
    divergence: str = "ikl"
    sigma_init: float = 2.5
    fake_lr: float | None = None
    fake_P_mean: float = -1.2
    fake_P_std: float = 1.2
    fake_warmup: float = 0.0
    adv_weight: float = 0.0
    fsdp: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> str:
        """The configuration as it is written to training_options.json."""
        return json.dumps(asdict(self), indent=2)

    @property
    def needs_data(self) -> bool:
        """Whether real images take part in the training."""
        return self.kind != "di" or self.adv_weight > 0


#: Defaults that depend on the kind, over those of TrainConfig.
KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "edm": dict(batch=512, kimg=200000.0, lr=1e-3, lr_rampup=10000.0, beta1=0.9, beta2=0.999, ema=500.0),
    "gan": dict(batch=32, kimg=25000.0, lr=2.5e-3, beta1=0.0, beta2=0.99, ema=10.0),
    "di": dict(batch=128, kimg=10000.0, lr=1e-5, beta1=0.0, beta2=0.999, ema=500.0, aug="noaug"),
}  # fmt: skip

#: Fields that belong to some kinds only; given with another kind they are refused, never ignored.
GROUPS: Mapping[str, tuple[str, ...]] = (
    dict.fromkeys(("arch", "model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout",
                   "label_dropout"), ("edm",))
    | dict.fromkeys(("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "fp16_res", "mixing", "pl_weight",
                     "pl_interval", "mbstd_group"), ("gan",))
    | dict.fromkeys(("gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target", "ada_kimg"), ("gan", "di"))
    | dict.fromkeys(("gan_pkl", "teacher", "divergence", "sigma_init", "fake_lr", "fake_P_mean", "fake_P_std",
                     "fake_warmup", "adv_weight", "fsdp"), ("di",))
    | dict.fromkeys(("P_mean", "P_std"), ("edm", "di"))
)  # fmt: skip

#: Recipes of --kind=di for known GANs and teachers, by file name, over the kind's; how they were found: docs/demo.md.
_FASHION: dict[str, Any] = dict(
    batch=32, beta2=0.999, lr_decay=0.5, ema=5.0, tick=2.0, snap=100, metrics=("fd_fashion", "pr_fashion"),
    metric_samples=10000,
)  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "fashion-gan.pkl": _FASHION | dict(kimg=44.0, lr=2e-3, fake_lr=1.5e-3, dlr=2e-3, gamma=0.05),
    "fashion-teacher.pkl": _FASHION | dict(kimg=24.0, lr=5e-4),
}


def _check(config: TrainConfig) -> None:
    """Raises UserError for values that no training can use; what depends on files is checked when they are opened."""
    positive = ("batch", "kimg", "tick", "snap", "state", "max_skips", "metric_samples", "lr", "w_dim", "map_depth",
                "cbase", "cmax", "r1_interval", "pl_interval", "ada_kimg", "sigma_init", "P_std", "fake_P_std",
                "model_channels", "num_blocks", "mbstd_group")  # fmt: skip
    for name in positive:
        _require(config, name, getattr(config, name) > 0, "a number above 0")
    not_negative = ("seed", "workers", "ema", "lr_rampup", "pl_weight", "fake_warmup", "adv_weight", "p", "fp16_res")
    for name in not_negative:
        _require(config, name, getattr(config, name) >= 0, "0 or a number above")
    for name in ("beta1", "beta2", "label_dropout", "dropout", "mixing"):
        _require(config, name, 0 <= getattr(config, name) <= 1, "a number from 0 to 1")
    if config.gpus is not None:
        _require(config, "gpus", config.gpus > 0, "a number above 0")
    if config.on_divergence == "best" and not config.metrics:
        raise UserError("--on-divergence=best needs --metrics, whose first tells which snapshot is best")
    if config.lr_decay is not None:
        _require(config, "lr_decay", 0 <= config.lr_decay < 1, "a share of the run from 0 to below 1, or none")
    if config.kind in ("edm", "gan") and config.data is None:
        raise UserError(
            f"--kind={config.kind} needs --data=ZIP|DIR, the images to learn from (see tools/dataset_tool.py)"
        )
    if config.divergence == "none" and not config.adv_weight:
        raise UserError("--divergence=none leaves nothing to train by; give --adv-weight=1 or another --divergence")
    if config.kind == "di" and config.teacher is None and config.divergence != "none":
        raise UserError(
            "--kind=di needs --teacher=NAME|PATH|URL, an EDM network, unless --gan-pkl is a known name that has one"
        )
    if config.adv_weight > 0 and (config.data is None or config.gan_pkl is None):
        raise UserError(
            f"--adv-weight={config.adv_weight:g} needs --gan-pkl, whose discriminator it uses, and --data, real images"
        )


#: Options that lay out a GAN's networks; those of the discriminator, which --kind=di has only with --adv-weight; those
#: of the divergence, which there is none of with --divergence=none.
GAN_LAYERS = ("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "fp16_res", "mbstd_group")
DIVERGENCE = ("teacher", "P_mean", "P_std", "fake_lr", "fake_P_mean", "fake_P_std", "fake_warmup")
DISCRIMINATOR = ("gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target", "ada_kimg")


def _require(config: TrainConfig, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        raise UserError(f"--{name.replace('_', '-')}={getattr(config, name)}: accepted is {accepted}")


def resolve(kind: Kind, given: dict[str, Any], recipe_name: str | None) -> TrainConfig:
    """The configuration of a run: given options over the recipe of a known name over the kind's over the general."""
    known = {field.name for field in fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise KeyError(f"no such field of TrainConfig: {name}")
        if kind not in GROUPS.get(name, (kind,)):
            option = name.replace("_", "-")
            kinds = " or ".join(GROUPS[name])
            raise UserError(f"--{option}={given[name]} belongs to --kind={kinds}; this is --kind={kind}")
    if kind == "di":
        _refuse_idle(given)
    if "resume" in given and kind != "gan":
        raise UserError(
            f"--resume={given['resume']} is a GAN's file to train on from, which belongs to --kind=gan; this is "
            f"--kind={kind}: to go on with a run, give latest, its folder, or one of its training states"
        )
    if "resume" in given:
        given = _resumed(given)
    values = KIND_DEFAULTS[kind] | RECIPES.get(recipe_name or "", {}) | given
    return TrainConfig(kind=kind, **values)


def _resumed(given: dict[str, Any]) -> dict[str, Any]:
    """The given options with stylegan2-ada's defaults for training on: ADA's p moves faster, the EMA has no youth."""
    layers = [name for name in GAN_LAYERS if name in given]
    if layers:
        option = layers[0].replace("_", "-")
        raise UserError(f"--{option} has no effect with --resume, whose networks are as in its file: leave it out")
    return {"ada_kimg": 100.0, "ema_rampup": None} | given


def _refuse_idle(given: dict[str, Any]) -> None:
    """Raises UserError for options of Diff-Instruct that the others given leave without effect."""
    idle = [name for name in (*DISCRIMINATOR, "data", "cond", "mirror", "workers") if name in given]
    if idle and not given.get("adv_weight"):
        option = idle[0].replace("_", "-")
        raise UserError(f"--{option} has no effect without --adv-weight; leave it out, or give --adv-weight=1")
    idle = [name for name in DIVERGENCE if name in given]
    if idle and given.get("divergence") == "none":
        raise UserError(f"--{idle[0].replace('_', '-')} has no effect with --divergence=none: leave it out")
    if "sigma_init" in given and "gan_pkl" in given:
        raise UserError("--sigma-init is for distilling a teacher, and --gan-pkl gives a GAN to refine: leave it out")
