"""From the options given to a run's configuration: presets are filled in, and what has no effect is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stylegan_di.config import Kind, TrainConfig, check_specs, uses_teacher
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.options import options_of
from stylegan_di.presets import EDM_PRESETS, KIND_DEFAULTS, RECIPES, check_cfg, gan_preset, recipe_name

NO_RESUME = "noresume"  # stylegan2-ada's --resume for none
#: stylegan2-ada's defaults for starting from a GAN: ADA's p moves faster, the EMA has no youth.
STARTED_FROM_A_GAN: dict[str, Any] = {"ada_kimg": 100.0, "ema_rampup": None}
#: Options that lay out a GAN's networks; those of a discriminator's training; those of real images; those of the
#: divergence.
GAN_LAYERS = ("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "d_arch", "fp16_res", "mbstd_group")
DISCRIMINATOR = ("gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target", "ada_kimg")
REAL_IMAGES = ("data", "cond", "mirror", "subset", "workers")
TEACHER = ("prompt", "negative_prompt", "guidance", "autoencoder", "checkpointing")
DIVERGENCE = ("noise_law", "fake_lr", "fake_noise_law", "fake_rank", "fake_steps", "fake_warmup", "compile", "fsdp")


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
    known = {declared.name: declared for declared in options_of(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("resume") == NO_RESUME:
        del given["resume"]
    for name, value in given.items():
        kinds = known[name].kinds
        if kinds and kind not in kinds:
            belongs = " or ".join(kinds)
            raise UserError(f"{option_name(name)}={value} belongs to --kind={belongs}; this is --kind={kind}")
        known[name].check(value)
    check_specs(kind, given)  # before the data set is opened for its resolution
    if "cfg" in given:
        check_cfg(kind, given["cfg"])
    if "resume" in given and kind != "gan":
        raise UserError(
            f"--resume={given['resume']} is a GAN's file to start from, which belongs to --kind=gan; this is "
            f"--kind={kind}: to continue a run, give latest, its folder, or one of its training states"
        )
    if kind == "gan":
        preset = _gan_options(given, resolution_of, gpus)
    else:
        preset = _edm_options(given) if kind == "edm" else _di_options(given, known_name)
    resumed = STARTED_FROM_A_GAN if "resume" in given else {}
    config = TrainConfig(kind=kind, **(KIND_DEFAULTS[kind] | preset | resumed | given))
    for names, why in _without_effect(config):
        if idle := [name for name in names if name in given]:
            raise UserError(f"{option_name(idle[0])}={_text(given[idle[0]])} has no effect {why}")
    if config.aug == "fixed" and not config.p:
        raise UserError("--aug=fixed needs --p, the probability of augmentations, such as --p=0.2")
    return config


def _without_effect(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Which options the others leave without effect, and why; given all the same, they are refused."""
    leave = ": leave it out"
    if config.kind == "di":
        if not config.trains_critic:
            yield DISCRIMINATOR, "without --adv-weight; leave it out, or give --adv-weight=1"
        if not config.needs_data:
            yield REAL_IMAGES, "without --adv-weight, --critic or a divergence that sees real images: leave it out"
        if not config.trains_critic and config.critic == "none":
            yield ("critic_noise_law",), "without a critic: leave it out, or give --critic=features"
        if samples_wanted(config.data) is not None:
            yield ("cond", "subset"), "with --data=teacher:N, whose labels and number are the teacher's" + leave
        if config.divergence == "none":
            yield DIVERGENCE, "with --divergence=none" + leave
            if not config.needs_teacher:
                yield ("teacher", *TEACHER), "with --divergence=none" + leave
        if config.gan_pkl is not None:
            yield ("sigma_init",), "with --gan-pkl, a GAN to refine: it is for distilling a teacher; leave it out"
    if config.kind == "edm" and not config.cond:
        yield ("label_dropout",), "without --cond=true" + leave
    if config.gamma == 0:
        yield ("r1_interval",), "with --gamma=0" + leave
    idle = {"noaug": ("p", "target", "ada_kimg", "augpipe"), "fixed": ("target", "ada_kimg"), "ada": ()}[config.aug]
    yield idle, f"with --aug={config.aug}" + leave
    if not config.metrics:
        yield ("ref", "metric_samples", "detector_file"), "with --metrics=none" + leave
    if not config.pl_weight:
        yield ("pl_interval",), "with --pl-weight=0" + leave
    if config.resume is not None:
        yield GAN_LAYERS, "with --resume, whose networks are as in its file" + leave


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _gan_options(given: Mapping[str, Any], resolution_of: Callable[[str], int], gpus: int) -> dict[str, Any]:
    cfg = given.get("cfg", "auto")
    resolution = resolution_of(given["data"]) if cfg == "auto" and "data" in given else 256
    cuda = given.get("device", "cpu").startswith("cuda")
    preset = gan_preset(cfg, resolution=resolution, gpus=gpus, batch=given.get("batch"), cuda=cuda)
    return preset | {"cfg": cfg}


def _edm_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of --arch, which --cfg is another name for, and the noise levels of --precond."""
    cfg = given.get("cfg", given.get("arch", "ddpmpp"))
    arch = given.get("arch", cfg)
    if cfg != arch:
        raise UserError(f"--cfg={cfg} and --arch={arch} name two architectures; give one of them")
    law = {"vp": "vp", "ve": "ve"}.get(given.get("precond", "edm"), "lognormal")
    return EDM_PRESETS[arch] | {"cfg": arch, "arch": arch, "noise_law": law}


def _di_options(given: Mapping[str, Any], known_name: str | None) -> dict[str, Any]:
    """The recipe of --cfg, else of a known GAN or teacher; its teacher where none is given."""
    cfg = given.get("cfg", recipe_name(known_name or ""))
    if cfg is None:
        return {}
    recipe = RECIPES[cfg]
    options = (recipe.refine if "gan_pkl" in given else recipe.distil) | {"cfg": cfg}
    return options | ({"teacher": recipe.teacher} if uses_teacher(given) else {})
