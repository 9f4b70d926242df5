"""From the options given to a run's configuration: presets are filled in, and what has no effect is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stylegan_di import zoo
from stylegan_di.config import TrainConfig
from stylegan_di.config.checks import check_specs
from stylegan_di.config.derived import uses_teacher
from stylegan_di.config.fields import ONLINE, Kind
from stylegan_di.data.teacher_samples import FRESH, samples_wanted
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.metrics.table import judge
from stylegan_di.options import options_of, typed
from stylegan_di.presets import (
    BY_RESOLUTION,
    EDM_PRESETS,
    KIND_DEFAULTS,
    R3GAN,
    RECIPES,
    REFINER,
    STYLEGAN3,
    check_cfg,
    gan_preset,
    recipe_name,
    use_of,
)
from stylegan_di.students.refiner import SIGMA_INIT

LEAVE = ": leave it out"
MOST_NAMED = 4  # options in which a training departs from its recipe
#: Options that say what is checked and shown of a run, and where and how it is computed and kept. What is learned is
#: the same with any of them, but for rounding and for what --seed draws.
ASIDE = (
    "ref", "detector_file", "resume", "outdir", "desc", "seed", "device", "gpus", "heartbeat", "workers", "batch_gpu",
    "tick", "compile", "cuda_graph", "fsdp", "max_skips", "on_divergence", "winograd", "force", "headroom",
    "checkpointing", "metrics", "metric_samples", "snap", "state", "snap_format", "track",
)  # fmt: skip
REFINERS: dict[str, Any] = {"sigma_init": SIGMA_INIT}  # --student=refiner where no recipe says otherwise
NO_RESUME = "noresume"  # stylegan2-ada's --resume for none
#: NVlabs' defaults for starting from a GAN: ADA's p moves faster, the EMA has no youth, nothing is blurred.
STARTED_FROM_A_GAN: dict[str, Any] = {"ada_kimg": 100.0, "ema_rampup": None, "blur_sigma": 0.0}
#: Options that lay out a GAN's networks; those of a discriminator's training; those that lay out a denoiser, and train
#: one beside a student; those of real images; those of the divergence.
GAN_LAYERS = ("cbase", "cmax", "w_dim", "map_depth", "noise_inputs", "d_arch", "fp16_res", "mbstd_group")
DISCRIMINATOR = ("gamma", "r1_interval", "dlr", "aug", "augpipe", "p", "target", "ada_kimg")
UNET_LAYERS = ("arch", "precond", "model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
ONLINE_TEACHER = (*UNET_LAYERS, "augment", "label_dropout", "teacher_lr", "teacher_warmup")
REAL_IMAGES = ("data", "cond", "mirror", "subset", "workers")
#: Options of StyleGAN2's and StyleGAN3's networks and losses that R3GAN has no use for.
NOT_R3GANS = ("map_depth", "noise_inputs", "d_arch", "freezed", "mixing", "pl_weight", "pl_interval", "blur_sigma",
              "blur_fade", "mbstd_group", "freeze", "r1_interval")  # fmt: skip
TEACHER = ("prompt", "negative_prompt", "guidance", "autoencoder")
DIVERGENCE = (
    "noise_law", "fake_lr", "fake_noise_law", "fake_rank", "fake_steps", "fake_warmup", "one_noise", "compile",
    "winograd", "fsdp"
)  # fmt: skip


def resolve(
    kind: Kind, given: dict[str, Any], known_name: str | None, *, resolution_of: Callable[[str], int], gpus: int = 1
) -> TrainConfig:
    """The configuration of a run: given options over those of --cfg or a known name's recipe over the kind's.

    Args:
        kind: of the training.
        given: fields of TrainConfig; None for those not given.
        known_name: the zoo's name of the GAN, else of the teacher; None for others.
        resolution_of: the resolution of the images of a data set, for a --cfg that depends on it.
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
            raise UserError(f"{option_name(name)}={typed(value)} belongs to --kind={belongs}; this is --kind={kind}")
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
    asked = [name for name in given if (name, given[name]) != ("headroom", 0)]  # 0 asks for none, as is the case then
    for names, why in _without_effect(config):
        if idle := [name for name in names if name in asked]:
            raise UserError(f"{option_name(idle[0])}={typed(given[idle[0]])} has no effect {why}")
    if config.cfg == R3GAN and config.aug == "ada":
        raise UserError("--aug=ada goes by signs of logits, which mean nothing to --cfg=r3gan: give fixed or noaug")
    if config.cfg == R3GAN and config.gamma is None:
        raise UserError("--cfg=r3gan knows the --gamma of 32, 64 and 256 pixels only; give one, such as --gamma=2")
    if config.aug == "fixed" and not config.p:
        raise UserError("--aug=fixed needs --p, the probability of augmentations, such as --p=0.2")
    return config


def departure(config: TrainConfig) -> str:
    """Returns the options in which a training differs from the recipe that it names, as typed; '' where in none.

    A GAN or a teacher of the recipe's name counts as its own, wherever the file is.
    """
    recipe = RECIPES.get(config.cfg or "")
    if config.kind != "di" or recipe is None:
        return ""
    given = {"cfg": config.cfg, "student": config.student.partition(":")[0]}
    if config.gan_pkl is not None:
        given["gan_pkl"] = recipe.gan or config.gan_pkl
    plain = TrainConfig("di", **(KIND_DEFAULTS["di"] | _di_options(given, None) | given))
    found = []
    for name in (declared.name for declared in options_of(TrainConfig) if declared.name not in ASIDE):
        own, recipes = getattr(config, name), getattr(plain, name)
        known = zoo.entry(own) if name in ("gan_pkl", "teacher") and own is not None else None
        if own != recipes and (known is None or known.name != recipes):
            found.append(f"no {option_name(name)}" if own is None else f"{option_name(name)}={typed(own)}")
    return " ".join(found[:MOST_NAMED]) + (f" and {len(found) - MOST_NAMED} more" if found[MOST_NAMED:] else "")


def _without_effect(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Which options the others leave without effect, and why; given all the same, they are refused."""
    if config.kind == "di":
        yield from _without_effect_in_di(config)
    if config.kind != "gan" and not config.cond:
        yield ("label_dropout",), "without --cond=true" + LEAVE
    if config.transfer is not None:
        yield ("cfg", *UNET_LAYERS), "with --transfer, whose network is as in its file" + LEAVE
    if config.gamma == 0:
        yield ("r1_interval",), "with --gamma=0" + LEAVE
    idle = {"noaug": ("p", "target", "ada_kimg", "augpipe"), "fixed": ("target", "ada_kimg"), "ada": ()}[config.aug]
    yield idle, f"with --aug={config.aug}" + LEAVE
    if not config.metrics:
        yield ("ref", "metric_samples", "detector_file"), "without metrics: leave it out, or give --metrics"
    if not config.pl_weight:
        yield ("pl_interval",), "with --pl-weight=0" + LEAVE
    if config.kind == "gan" and not config.blur_sigma:
        yield ("blur_fade",), "with --blur-sigma=0" + LEAVE
    if config.cfg == R3GAN:
        yield NOT_R3GANS, f"with --cfg={R3GAN}" + LEAVE
    elif config.kind == "gan":
        yield ("anneal",), f"without --cfg={R3GAN}" + LEAVE
    if config.cfg in STYLEGAN3:
        yield ("noise_inputs",), f"with --cfg={config.cfg}, whose generator has none" + LEAVE
    if config.resume is not None:
        yield GAN_LAYERS, "with --resume, whose networks are as in its file" + LEAVE


def _without_effect_in_di(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Which options of --kind=di the others leave without effect, and why."""
    if not config.trains_teacher:
        yield ONLINE_TEACHER, "without --teacher=online, a teacher that is trained on the way" + LEAVE
    else:
        why = "with --teacher=online, a denoiser of pixels that is trained on the way"
        yield (*TEACHER, "headroom"), why + LEAVE
    if config.gan_pkl is None or not config.needs_teacher:
        yield ("match", "classes", "force", "headroom"), "without a GAN to refine and its teacher" + LEAVE
    if not config.trains_critic:
        yield DISCRIMINATOR, "without --adv-weight; leave it out, or give --adv-weight=1"
    if not config.needs_data:
        yield REAL_IMAGES, "without --adv-weight, --critic or a divergence that sees real images: leave it out"
    if judge(config.metrics) is None:
        why = f"with --metrics={','.join(config.metrics) or 'none'}, by which GAN and teacher cannot be compared"
        yield ("headroom",), why + LEAVE
    if not config.clip:
        yield ("clip_return",), "without --clip=true" + LEAVE
    if not config.trains_critic and config.critic == "none":
        yield ("critic_noise_law",), "without a critic: leave it out, or give --critic=features"
    if samples_wanted(config.data) is not None:
        yield ("cond", "subset"), "with --data=teacher:N, whose labels and number are the teacher's" + LEAVE
    if samples_wanted(config.data) == FRESH:
        yield ("mirror", "workers"), "with --data=teacher:fresh, which is no data set" + LEAVE
    if config.critic == "none":
        yield ("teacher_samples",), "without --critic=features, a critic on the teacher's features" + LEAVE
    if config.divergence == "none":
        yield DIVERGENCE, "with --divergence=none" + LEAVE
        if not config.shows_teacher:
            yield ("headroom", "force"), "with --divergence=none and no --critic" + LEAVE
        if not config.needs_teacher:
            yield ("teacher", "checkpointing", *TEACHER), "with --divergence=none" + LEAVE
    if config.gan_pkl is not None:
        yield ("student_steps",), "with --gan-pkl, which makes its images in one: leave it out"
    if config.makes_student:
        yield ("sigma_init", "student_steps"), f"with --student={config.student}, a new network" + LEAVE
    if config.gan_pkl is not None and config.student == "auto":
        yield ("sigma_init",), "with --gan-pkl, a GAN to refine: it is for distilling a teacher; leave it out"


def _gan_options(given: Mapping[str, Any], resolution_of: Callable[[str], int], gpus: int) -> dict[str, Any]:
    cfg = given.get("cfg", "auto")
    resolution = resolution_of(given["data"]) if cfg in BY_RESOLUTION and "data" in given else 256
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
    online = EDM_PRESETS[given.get("arch", "ddpmpp")] if given.get("teacher") == ONLINE else {}
    use = use_of(given.get("student"), given.get("gan_pkl"))
    refiner = REFINERS if use == REFINER else {}
    cfg = given.get("cfg", recipe_name(known_name or ""))
    if cfg is None:
        return online | refiner
    recipe = RECIPES[cfg]
    options = refiner | dict(recipe.uses.get(use, {})) | {"cfg": cfg}
    return options | online | ({"teacher": recipe.teacher} if uses_teacher(given) else {})
