"""What a training run is, as one validated value, filled from the options given over the presets (`presets`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from stylegan_di.dnnlib.util import UserError
from stylegan_di.presets import EDM_PRESETS, KIND_DEFAULTS, RECIPES, check_cfg, gan_preset, recipe_name

Kind = Literal["edm", "gan", "di"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Names are those of the command line's options, where `python train.py --help` explains them."""

    kind: Kind
    cfg: str | None = None
    outdir: str = "runs"
    desc: str = ""
    # Inputs.
    data: str | None = None
    cond: bool = False
    mirror: bool = False
    subset: int | None = None
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
    amp: Literal["none", "bf16", "fp16"] = "none"
    compile: bool = False
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
    precond: Literal["edm", "vp", "ve"] = "edm"
    augment: float = 0.12
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
    d_arch: Literal["resnet", "skip", "orig"] = "resnet"
    freezed: int = 0
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
    freeze: tuple[str, ...] = ()
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


#: Fields that belong to some kinds only; given with another kind they are refused, never ignored.
GROUPS: Mapping[str, tuple[str, ...]] = (
    dict.fromkeys(("arch", "precond", "augment", "model_channels", "channel_mult", "num_blocks", "attn_resolutions",
                   "dropout", "label_dropout"), ("edm",))
    | dict.fromkeys(("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "d_arch", "freezed", "fp16_res",
                     "mixing", "pl_weight", "pl_interval", "mbstd_group"), ("gan",))
    | dict.fromkeys(("freeze", "gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target",
                     "ada_kimg"), ("gan", "di"))
    | dict.fromkeys(("gan_pkl", "teacher", "divergence", "sigma_init", "fake_lr", "fake_P_mean", "fake_P_std",
                     "fake_warmup", "adv_weight", "fsdp"), ("di",))
    | dict.fromkeys(("P_mean", "P_std", "amp", "compile"), ("edm", "di"))
)  # fmt: skip


def _check(config: TrainConfig) -> None:
    """Raises UserError for values that no training can use; what depends on files is checked when they are opened."""
    positive = ("batch", "kimg", "tick", "snap", "state", "max_skips", "metric_samples", "lr", "w_dim", "map_depth",
                "cbase", "cmax", "r1_interval", "pl_interval", "ada_kimg", "sigma_init", "P_std", "fake_P_std",
                "model_channels", "num_blocks", "mbstd_group")  # fmt: skip
    for name in positive:
        _require(config, name, getattr(config, name) > 0, "a number above 0")
    not_negative = ("seed", "workers", "ema", "lr_rampup", "pl_weight", "fake_warmup", "adv_weight", "fp16_res",
                    "freezed")  # fmt: skip
    for name in not_negative:
        _require(config, name, getattr(config, name) >= 0, "0 or a number above")
    for name in ("beta1", "beta2", "label_dropout", "dropout", "mixing", "augment", "p", "target"):
        _require(config, name, 0 <= getattr(config, name) <= 1, "a number from 0 to 1")
    if config.gpus is not None:
        _require(config, "gpus", config.gpus > 0, "a number above 0")
    if config.on_divergence == "best" and not config.metrics:
        raise UserError("--on-divergence=best needs --metrics, whose first tells which snapshot is best")
    if config.subset is not None:
        _require(config, "subset", config.subset > 0, "a number above 0")
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
            "--kind=di needs --teacher=NAME|PATH|URL, an EDM network, or --cfg=NAME, or a known --gan-pkl that has one"
        )
    if config.freeze and config.kind == "di" and config.gan_pkl is None:
        parts = ",".join(config.freeze)
        raise UserError(f"--freeze={parts} is for the layers of a GAN: give --gan-pkl, or leave it out")
    if config.adv_weight > 0 and (config.data is None or config.gan_pkl is None):
        raise UserError(
            f"--adv-weight={config.adv_weight:g} needs --gan-pkl, whose discriminator it uses, and --data, real images"
        )


#: Options that lay out a GAN's networks; those of the discriminator, which --kind=di has only with --adv-weight; those
#: of the divergence, which there is none of with --divergence=none.
NO_RESUME = "noresume"  # stylegan2-ada's --resume for none
GAN_LAYERS = ("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "d_arch", "fp16_res", "mbstd_group")
DIVERGENCE = ("teacher", "P_mean", "P_std", "fake_lr", "fake_P_mean", "fake_P_std", "fake_warmup",
              "compile")  # fmt: skip
DISCRIMINATOR = ("gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target", "ada_kimg")


def _require(config: TrainConfig, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        raise UserError(f"--{name.replace('_', '-')}={getattr(config, name)}: accepted is {accepted}")


def resolve(
    kind: Kind, given: dict[str, Any], known_name: str | None, *, resolution_of: Callable[[str], int], gpus: int = 1
) -> TrainConfig:
    """The configuration of a run: given options over those of --cfg or a known name's recipe over the kind's.

    Args:
        kind: of the training.
        given: fields of TrainConfig; None for those not given.
        known_name: the zoo's name of the GAN, else of the teacher; None for others.
        resolution_of: the resolution of the images of a data set, for --cfg=auto.
        gpus: number of processes.

    Raises:
        UserError: for options of another kind, without effect, or with a value that no training can use.
    """
    known = {field.name for field in fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("resume") == NO_RESUME:
        del given["resume"]
    for name in given:
        if name not in known:
            raise KeyError(f"no such field of TrainConfig: {name}")
        if kind not in GROUPS.get(name, (kind,)):
            option = name.replace("_", "-")
            kinds = " or ".join(GROUPS[name])
            raise UserError(f"--{option}={given[name]} belongs to --kind={kinds}; this is --kind={kind}")
    if "cfg" in given:
        check_cfg(kind, given["cfg"])
    if "resume" in given and kind != "gan":
        raise UserError(
            f"--resume={given['resume']} is a GAN's file to train on from, which belongs to --kind=gan; this is "
            f"--kind={kind}: to go on with a run, give latest, its folder, or one of its training states"
        )
    if kind == "gan":
        preset = _gan_options(given, resolution_of, gpus)
    else:
        preset = _edm_options(given) if kind == "edm" else _di_options(given, known_name)
    resumed = _resume_options(given) if "resume" in given else {}
    values = KIND_DEFAULTS[kind] | preset | resumed | given
    _refuse_idle(kind, given, values)
    return TrainConfig(kind=kind, **values)


def _gan_options(given: Mapping[str, Any], resolution_of: Callable[[str], int], gpus: int) -> dict[str, Any]:
    cfg = given.get("cfg", "auto")
    resolution = resolution_of(given["data"]) if cfg == "auto" and "data" in given else 256
    cuda = given.get("device", "cpu").startswith("cuda")
    preset = gan_preset(cfg, resolution=resolution, gpus=gpus, batch=given.get("batch"), cuda=cuda)
    return preset | {"cfg": cfg}


def _resume_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """stylegan2-ada's defaults for training on: ADA's p moves faster, the EMA has no youth."""
    layers = [name for name in GAN_LAYERS if name in given]
    if layers:
        option = layers[0].replace("_", "-")
        raise UserError(f"--{option} has no effect with --resume, whose networks are as in its file: leave it out")
    return {"ada_kimg": 100.0, "ema_rampup": None}


def _edm_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of --arch, which --cfg is another name for."""
    cfg = given.get("cfg", given.get("arch", "ddpmpp"))
    arch = given.get("arch", cfg)
    if cfg != arch:
        raise UserError(f"--cfg={cfg} and --arch={arch} name two architectures; give one of them")
    return EDM_PRESETS[arch] | {"cfg": arch, "arch": arch}


def _di_options(given: Mapping[str, Any], known_name: str | None) -> dict[str, Any]:
    """The recipe of --cfg, else of a known GAN or teacher; its teacher where none is given."""
    cfg = given.get("cfg", recipe_name(known_name or ""))
    if cfg is None:
        return {}
    recipe = RECIPES[cfg]
    options = (recipe.refine if "gan_pkl" in given else recipe.distil) | {"cfg": cfg}
    return options if given.get("divergence") == "none" else options | {"teacher": recipe.teacher}


def _refuse_idle(kind: Kind, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises UserError for options that the others leave without effect."""
    if kind == "di":
        _refuse_idle_di(given)
    elif kind == "edm" and values.get("precond", "edm") != "edm":
        for name in given.keys() & {"P_mean", "P_std"}:
            raise UserError(
                f"--{name.replace('_', '-')}={given[name]} is for --precond=edm; {values['precond']} has "
                "noise levels of its own: leave it out"
            )
    aug = values.get("aug", "ada")
    idle = {"noaug": ("p", "target", "ada_kimg", "augpipe"), "fixed": ("target", "ada_kimg"), "ada": ()}[aug]
    for name in idle:
        if name in given:
            raise UserError(f"--{name.replace('_', '-')}={given[name]} has no effect with --aug={aug}: leave it out")
    if aug == "fixed" and not values.get("p"):
        raise UserError("--aug=fixed needs --p, the probability of augmentations, such as --p=0.2")


def _refuse_idle_di(given: Mapping[str, Any]) -> None:
    """Raises UserError for options of Diff-Instruct that the others given leave without effect."""
    idle = [name for name in (*DISCRIMINATOR, "data", "cond", "mirror", "subset", "workers") if name in given]
    if idle and not given.get("adv_weight"):
        option = idle[0].replace("_", "-")
        raise UserError(f"--{option} has no effect without --adv-weight; leave it out, or give --adv-weight=1")
    idle = [name for name in DIVERGENCE if name in given]
    if idle and given.get("divergence") == "none":
        raise UserError(f"--{idle[0].replace('_', '-')} has no effect with --divergence=none: leave it out")
    if "sigma_init" in given and "gan_pkl" in given:
        raise UserError("--sigma-init is for distilling a teacher, and --gan-pkl gives a GAN to refine: leave it out")
