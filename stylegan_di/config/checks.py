"""What the options of a run refuse of each other, before any file is opened (`preflight` checks those)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stylegan_di.config.derived import Derived
from stylegan_di.config.fields import Kind
from stylegan_di.critics import CRITIC_SPECS
from stylegan_di.data.teacher_samples import samples_wanted
from stylegan_di.diffusion import NOISE_LAWS
from stylegan_di.divergences import DIVERGENCES, parse_divergence
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.metrics.table import metric
from stylegan_di.specs import parse
from stylegan_di.students.fresh import FRESH_STUDENTS


@dataclass(frozen=True)
class Word:
    """A value in the place of a spec, without fields."""


def check_specs(kind: Kind, values: Mapping[str, Any]) -> None:
    """Raises UserError for a spec that names nothing; values are fields, None or missing where they are not given."""
    if (divergence := values.get("divergence")) == "":
        raise UserError(f"--divergence=: accepted: none, {', '.join(DIVERGENCES)}, or a sum such as ikl+0.5*sid")
    if divergence is not None:
        parse_divergence(divergence)
    if samples_wanted(data := values.get("data")) is not None and kind != "di":
        raise UserError(f"--data={data} is for --kind=di, which has a teacher; this is --kind={kind}")
    specs: dict[str, dict[str, type[Any]]] = {
        "critic": {"none": Word, **CRITIC_SPECS},
        "student": {"auto": Word, "refiner": Word, **FRESH_STUDENTS},
        "noise_law": NOISE_LAWS,
        "fake_noise_law": NOISE_LAWS,
        "critic_noise_law": {"none": Word, **NOISE_LAWS},
    }
    for name, accepted in specs.items():
        if (text := values.get(name)) is not None:
            parse(text, accepted, option_name(name))
    for name in values.get("metrics") or ():
        metric(name)


def contradictions(config: Derived) -> Iterator[str]:
    """Why options make no training together, in sentences that name them and the remedy."""
    yield from _reporting(config)
    yield from _learning(config)
    yield from _computing(config)
    yield from _student(config)
    yield from _critic(config)
    yield from _teacher(config)
    yield from _one_noise(config)
    yield from _images(config)


def _reporting(config: Derived) -> Iterator[str]:
    """What is measured, and where it is written."""
    if config.on_divergence == "best":
        if not config.metrics:
            yield "--on-divergence=best needs --metrics, whose first tells which snapshot is best"
        elif metric(config.metrics[0]).higher_is_better is None:
            yield f"--on-divergence=best: the first metric, {config.metrics[0]}, tells no better from worse"
    if len(set(config.metrics)) < len(config.metrics):
        yield f"--metrics={','.join(config.metrics)} names a metric twice: leave one out"
    if config.headroom == 1:
        yield "--headroom=1: nothing is measured on one sample; accepted are 0, for none, or 2 and more"
    if {"/", "\\"} & set(config.desc):
        yield f"--desc={config.desc}: accepted is a text without / and \\, as it becomes part of a name"


def _learning(config: Derived) -> Iterator[str]:
    """Something has to be learned from."""
    if config.kind in ("edm", "gan") and config.data is None:
        yield f"--kind={config.kind} needs --data=ZIP|DIR, the images to learn from (see stylegan-di dataset)"
    if config.divergence == "none" and not config.adv_weight and config.critic == "none":
        yield "--divergence=none leaves nothing to train by; give --adv-weight=1 or another --divergence"
    if config.kind == "di" and config.teacher is None and config.needs_teacher:
        yield (
            "--kind=di needs --teacher=NAME|PATH|URL, a diffusion model, or --cfg=NAME, or a known --gan-pkl that has "
            "one"
        )
    if config.blur_sigma and not config.blur_fade:
        yield f"--blur-sigma={config.blur_sigma:g} needs --blur-fade, such as --blur-fade=200"


def _computing(config: Derived) -> Iterator[str]:
    if not config.channel_mult:
        yield "--channel-mult=none leaves the U-Net no resolution: give a multiplier for each, such as 1,2,2"
    if config.winograd and (config.device != "cpu" or config.amp != "none" or config.compile or config.fsdp):
        yield "--winograd is for a teacher in float32 on a CPU: leave it or --amp, --compile, --fsdp out"
    if config.winograd and config.trains_teacher:
        yield "--winograd is for a frozen teacher, and --teacher=online trains it: leave one of them out"
    if config.fsdp and config.fake_rank is not None:
        yield f"--fsdp spreads two networks, and --fake-rank={config.fake_rank} makes them share one: leave one out"
    if config.fsdp and config.critic != "none":
        yield "--fsdp spreads the teacher, whose features --critic needs whole: leave one of them out"


def _student(config: Derived) -> Iterator[str]:
    if config.makes_student and config.gan_pkl is not None:
        yield f"--student={config.student} is a new network: leave --gan-pkl={config.gan_pkl} out"
    if config.student == "refiner" and (config.gan_pkl is None or config.teacher is None or config.trains_teacher):
        yield "--student=refiner joins a GAN and a teacher's network: give --gan-pkl and --teacher"
    if config.fake_warmup + config.teacher_warmup >= config.kimg and (config.fake_warmup or config.teacher_warmup):
        name, value = max(("fake", config.fake_warmup), ("teacher", config.teacher_warmup), key=lambda pair: pair[1])
        yield f"--{name}-warmup={value:g} leaves none of --kimg={config.kimg:g} to the student"
    if config.freeze and config.kind == "di" and config.gan_pkl is None:
        yield f"--freeze={','.join(config.freeze)} is for the layers of a GAN: give --gan-pkl, or leave it out"


def _critic(config: Derived) -> Iterator[str]:
    if config.teacher_samples is not None and (samples_wanted(config.data) is not None or config.trains_teacher):
        option = "--teacher=online" if config.trains_teacher else f"--data={config.data}"
        yield (
            f"--teacher-samples={config.teacher_samples} is for samples of a frozen teacher beside real images; leave "
            f"it or {option} out"
        )
    if config.divergence == "none" and config.critic_spec is not None and config.critic_spec.share:
        yield (
            f"--critic={config.critic}: share is of a divergence's gradient, and --divergence=none has none; give rms "
            "instead"
        )


def _teacher(config: Derived) -> Iterator[str]:
    """What a teacher on the way, or a conversion, does not go with."""
    if config.trains_teacher:
        if config.gan_pkl is None:
            yield "--teacher=online needs --gan-pkl, the GAN to refine; to train a teacher, use --kind=edm"
        if samples_wanted(config.data) is not None:
            yield f"--teacher=online learns from real images: --data={config.data} are samples of a teacher"
        if config.fsdp or config.match != "pixels" or config.classes is not None:
            option = "--fsdp" if config.fsdp else f"--match={config.match}" if config.match != "pixels" else "--classes"
            yield f"{option} does not go with --teacher=online, made for the GAN's own images: leave it out"
        if config.fake_rank is not None:
            yield (
                f"--fake-rank={config.fake_rank} shares the teacher's weights, which --teacher=online moves: leave it "
                "out"
            )
    if config.guidance != 1 and config.classes == "null":
        yield (
            f"--guidance={config.guidance:g} leads away from the null label, the only one that --classes=null tells: "
            "leave it out"
        )
    if config.match != "pixels" and config.asks_discriminator:
        yield (
            f"--divergence={config.divergence} asks the GAN's own discriminator, which does not see what the teacher "
            f"sees with --match={config.match}; add --critic=features"
        )


def _one_noise(config: Derived) -> Iterator[str]:
    divergence = parse_divergence(config.divergence)
    if not config.one_noise or divergence is None:
        return
    if divergence.differentiable or divergence.needs_reals:
        yield (
            "--one-noise=true is for divergences that see the student's samples once and need no gradient of the fake "
            f"score, such as ikl; this is --divergence={config.divergence}"
        )
    if config.noise_law != config.fake_noise_law:
        yield (
            f"--one-noise=true takes the noise levels of both updates from one law; --noise-law={config.noise_law} and "
            f"--fake-noise-law={config.fake_noise_law} differ"
        )


def _images(config: Derived) -> Iterator[str]:
    """Real images, and the discriminator that sees them, have to be there where they are needed."""
    if config.kind == "di" and config.needs_data and config.data is None:
        samples = "" if config.trains_teacher else ", or teacher:N, samples of the teacher"
        yield f"{config.wants_reals} needs --data: real images{samples}"
    if config.kind == "di" and config.trains_critic and config.gan_pkl is None:
        or_critic = "" if config.adv_weight else ", or --critic=features"
        yield f"{config.wants_discriminator} needs --gan-pkl, whose discriminator it uses{or_critic}"
