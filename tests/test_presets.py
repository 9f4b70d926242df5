"""Presets give the networks and numbers of NVlabs' training scripts, recipes the known teachers."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stylegan_di import presets, zoo
from stylegan_di.config import TrainConfig
from stylegan_di.diffusion import LogNormalLaw
from stylegan_di.dnnlib.util import UserError
from stylegan_di.resolve import departure, resolve
from stylegan_di.training.denoising import new_network
from stylegan_di.training.methods import gan

SHAPES = Path(__file__).parent / "golden" / "format"
PUBLISHED_GAN = json.loads(gzip.decompress((SHAPES / "published_shapes_sg2.json.gz").read_bytes()))
PUBLISHED_EDM = json.loads(gzip.decompress((SHAPES / "published_shapes_edm.json.gz").read_bytes()))


def config(kind: Any, *, resolution: int = 32, gpus: int = 1, known: str | None = None, **given: Any) -> TrainConfig:
    if kind != "di":
        given.setdefault("data", "images.zip")
    return resolve(kind, given, known, resolution_of=lambda _: resolution, gpus=gpus)


def images(resolution: int, label_dim: int) -> Any:
    """As much of a data set as building needs."""
    return SimpleNamespace(resolution=resolution, width=resolution, num_channels=3, label_dim=label_dim)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --kind=gan.


@pytest.mark.parametrize("name", PUBLISHED_GAN)
def test_networks_of_the_gan_presets(name: str) -> None:
    cfg = name.partition("@")[0].replace("auto1", "auto").split("_")[0]
    published = PUBLISHED_GAN[name]
    resolution, label_dim = (published["G"]["init_kwargs"][key] for key in ("img_resolution", "c_dim"))
    resolved = config("gan", resolution=resolution, cfg=cfg, device="cuda")
    with torch.device("meta"):
        networks = gan._new_gan(resolved, images(resolution, label_dim))
    standard = {"architecture": "resnet"}
    assert networks.generator.init_kwargs == networks.ema.init_kwargs == published["G"]["init_kwargs"]
    assert networks.discriminator.init_kwargs == standard | published["D"]["init_kwargs"]
    assert parameters(networks.discriminator) == published["D"]["n_params"]


@pytest.mark.parametrize(
    ("cfg", "kimg", "batch", "lr", "gamma", "ema", "ema_rampup"),
    [
        ("stylegan2", 25000, 32, 0.002, 10, 10, None),
        ("paper256", 25000, 64, 0.0025, 1, 20, None),
        ("paper512", 25000, 64, 0.0025, 0.5, 20, None),
        ("paper1024", 25000, 32, 0.002, 2, 10, None),
        ("cifar", 100000, 64, 0.0025, 0.01, 500, 0.05),
    ],
)
def test_numbers_of_the_gan_presets(cfg: str, kimg: float, batch: int, lr: float, gamma: float, ema: float,
                                    ema_rampup: float | None) -> None:  # fmt: skip
    c = config("gan", cfg=cfg)
    assert (c.cfg, c.kimg, c.batch, c.lr, c.gamma, c.ema, c.ema_rampup) == (
        cfg, kimg, batch, lr, gamma, ema, ema_rampup,
    )  # fmt: skip
    assert c.batch_gpu == {"cifar": 32, "paper256": 8, "paper512": 8}.get(cfg, 4)
    assert (c.pl_weight, c.mixing, c.d_arch) == ((0, 0, "orig") if cfg == "cifar" else (2, 0.9, "resnet"))
    assert (c.aug, c.augpipe, c.target, c.ada_kimg, c.beta1, c.beta2) == ("ada", "bgc", 0.6, 500, 0.0, 0.99)


@pytest.mark.parametrize(
    ("resolution", "gpus", "batch", "mbstd", "gamma", "ema"),
    [(32, 1, 32, 4, 0.0064, 10), (256, 1, 16, 4, 0.8192, 5), (1024, 8, 32, 4, 6.5536, 10), (256, 8, 64, 4, 0.2048, 20),
     (1024, 1, 4, 4, 52.4288, 1.25), (1024, 2, 8, 4, 26.2144, 2.5)],
)  # fmt: skip
def test_auto_follows_resolution_and_gpus(
    resolution: int, gpus: int, batch: int, mbstd: int, gamma: float, ema: float
) -> None:
    c = config("gan", resolution=resolution, gpus=gpus)
    assert (c.cfg, c.batch, c.mbstd_group) == ("auto", batch, mbstd)
    assert (c.gamma, c.ema) == pytest.approx((gamma, ema))
    assert (c.lr, c.cbase) == (0.002 if resolution == 1024 else 0.0025, 32768 if resolution == 1024 else 16384)


def test_ticks_are_the_lineages() -> None:
    """So that --snap=50 is every 200 kimg of a GAN, every 2,500 of a denoiser."""
    assert [config("gan", cfg=cfg).tick for cfg in ("auto", "stylegan2", "stylegan3-t")] == [4, 4, 4]
    assert config("gan", cfg="r3gan", gamma=2.0).tick == 4
    assert config("edm").tick == 50


def test_stylegan3s_stylegan2_is_a_preset_with_another_average() -> None:
    """What docs/migration.md gives for stylegan3's --cfg=stylegan2 --batch=16 --gamma=5."""
    c = config("gan", cfg="stylegan2", batch=16, gamma=5.0, ema_rampup=0.05, ema=5.0)
    assert (c.batch, c.gamma, c.lr, c.dlr, c.cbase, c.cmax, c.map_depth) == (16, 5, 0.002, None, 32768, 512, 8)
    assert (c.kimg, c.mbstd_group, c.pl_weight, c.mixing, c.ema, c.ema_rampup) == (25000, 4, 2, 0.9, 5, 0.05)


def test_auto_derives_from_the_batch_given_and_options_win() -> None:
    c = config("gan", resolution=256, batch=2, lr=1e-4, gamma=3.0)
    assert (c.batch, c.mbstd_group, c.gamma, c.ema, c.lr) == (2, 2, 3.0, 0.625, 1e-4)
    assert config("gan").fp16_res == 0
    assert config("gan", device="cuda:1").fp16_res == 4
    assert config("gan", device="cuda", fp16_res=0).fp16_res == 0


# --kind=edm.


@pytest.mark.parametrize("name", PUBLISHED_EDM)
def test_networks_of_the_edm_presets(name: str) -> None:
    published = PUBLISHED_EDM[name]
    kwargs = published["init_kwargs"]
    arch = {"vp": "ddpmpp", "ve": "ncsnpp", "adm": "adm"}[name.rpartition("-")[2]]
    given: dict[str, Any] = dict(dropout=kwargs["dropout"], channel_mult=tuple(kwargs["channel_mult"]))
    c = config("edm", arch=arch, augment=0.12 if "augment_dim" in kwargs else 0.0, **given)
    with torch.device("meta"):
        network = new_network(c, images(kwargs["img_resolution"], kwargs["label_dim"]))
    built = network.init_kwargs
    assert {key: built.get(key, False) for key in kwargs} == kwargs | {"use_fp16": False}
    assert parameters(network) == published["n_params"]


def test_numbers_of_edm() -> None:
    c = config("edm")
    assert (c.cfg, c.arch, c.precond, c.augment) == ("ddpmpp", "ddpmpp", "edm", 0.12)
    assert (c.batch, c.lr, c.ema, c.ema_rampup) == (512, 1e-3, 500, 0.05)
    assert (c.beta1, c.beta2, c.lr_rampup, c.kimg, c.dropout) == (0.9, 0.999, 10000, 200000, 0.13)
    assert config("edm", cfg="adm") == config("edm", arch="adm")
    with pytest.raises(UserError, match="--cfg=adm and --arch=ncsnpp name two architectures"):
        config("edm", cfg="adm", arch="ncsnpp")


# --kind=di.


@pytest.mark.parametrize("name", presets.RECIPES)
def test_recipes_know_their_files(name: str) -> None:
    recipe = presets.RECIPES[name]
    teacher = zoo.ENTRIES[recipe.teacher]
    assert presets.recipe_name(recipe.teacher) == name
    assert teacher.reference is not None
    distilled = config("di", cfg=name)
    assert (distilled.teacher, distilled.cfg) == (recipe.teacher, name)
    if recipe.gan is not None:
        assert zoo.ENTRIES[recipe.gan].teacher == recipe.teacher
        refined = config("di", known=recipe.gan, gan_pkl=recipe.gan)
        assert (refined.teacher, refined.cfg) == (recipe.teacher, name)
    own = config("di", cfg=name, gan_pkl="mine.pkl", teacher="other.pkl")
    assert (own.teacher, own.gan_pkl) == ("other.pkl", "mine.pkl")


def test_the_published_settings_of_distillation() -> None:
    c = config("di", cfg="cifar10-uncond")
    assert (c.lr, c.fake_lr, c.batch, c.beta1, c.beta2, c.ema, c.ema_rampup) == (1e-5, None, 128, 0.0, 0.999, 500, 0.05)
    assert (c.divergence, c.sigma_init, c.noise_law, c.fake_noise_law) == ("ikl", 1.0, "lognormal", "lognormal")
    law = c.student_law
    assert law == LogNormalLaw(P_mean=-1.2, P_std=1.2)


def test_recipes_say_whether_they_were_measured() -> None:
    fashion, cifar = presets.RECIPES["fashion"], presets.RECIPES["cifar10-cond"]
    pages = "docs/demo.md and docs/measurements/generators.md"
    assert fashion.note(presets.REFINEMENT) == f"refinement, measured here: {pages}"
    assert fashion.note(presets.NEW_NETWORK) == f"a new network, measured here: {pages}"
    changed = fashion.note(presets.REFINEMENT, "--kimg=8")
    assert changed == f"refinement with --kimg=8; measured here without these: {pages}"
    assert all("not measured here" in cifar.note(use) for use in (presets.REFINEMENT, presets.DISTILLATION))
    assert cifar.note(presets.REFINEMENT, "--kimg=8").startswith("refinement with --kimg=8; not measured here: the s")


@pytest.mark.parametrize(
    ("given", "departs"),
    [
        (dict(gan_pkl="fashion-gan.pkl", seed=3, metrics=(), tick=1.0), ""),
        (dict(gan_pkl="a/fashion-gan.pkl", teacher="https://example.com/fashion-teacher.pkl"), ""),
        (dict(gan_pkl="fashion-gan.pkl", student="refiner"), ""),
        (dict(), ""),
        (dict(student="decoder"), ""),
        (dict(student="decoder:width=16"), "--student=decoder:width=16"),
        (dict(kimg=24.000001), "--kimg=24.000001"),
        (dict(gan_pkl="fashion-gan.pkl", kimg=8.0, clip=False), "--kimg=8 --clip=false"),
        (dict(gan_pkl="mine.pkl"), "--gan-pkl=mine.pkl"),
        (dict(divergence="sid", teacher="other.pkl"), "--teacher=other.pkl --divergence=sid"),
        (
            dict(lr=1e-3, ema=1.0, batch=2, kimg=2.0, beta1=0.5),
            "--batch=2 --kimg=2 --lr=0.001 --beta1=0.5 and 1 more",
        ),
    ],
    ids=str,
)
def test_what_departs_from_a_recipe_is_named(given: dict[str, Any], departs: str) -> None:
    assert departure(config("di", cfg="fashion", **given)) == departs


def test_what_departs_from_a_recipe_that_was_not_measured() -> None:
    assert departure(config("di", cfg="cifar10-uncond", lr=1e-4)) == "--lr=0.0001"
    alone = config("di", cfg="cifar10-cond", gan_pkl="cifar10.pkl", divergence="none", adv_weight=1.0, data="x")
    assert departure(alone) == "no --teacher --data=x --divergence=none --adv-weight=1"
    assert departure(config("di", teacher="x")) == departure(config("gan", data="x")) == ""


def test_what_a_training_is_for_has_options_of_its_own() -> None:
    gan, teacher = dict(cfg="fashion", gan_pkl="mine.pkl"), dict(cfg="fashion", teacher="other.pkl")
    refinement, refiner = config("di", **gan), config("di", **gan, student="refiner")
    distillation, flow = config("di", **teacher), config("di", **teacher, student="flow")
    found = [(c.kimg, c.whitening, c.clip) for c in (refinement, refiner, distillation, flow)]
    assert found == [(30, 1, True), (28, 0, True), (24, 0, True), (44, 0, False)]
    assert refiner.sigma_init == 1
    assert config("di", cfg="cifar10-cond", gan_pkl="mine.pkl", student="refiner").sigma_init == 1


def test_an_unknown_gan_has_no_recipe() -> None:
    c = config("di", gan_pkl="mine.pkl", teacher="teacher.pkl")
    assert (c.cfg, c.lr, c.batch) == (None, 1e-5, 128)


# Refusals.


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("gan", dict(cfg="paper64"), "accepted for --kind=gan are auto, stylegan2, paper256"),
        ("gan", dict(cfg="ddpmpp"), r"\(ddpmpp is for --kind=edm\)"),
        ("edm", dict(cfg="auto"), "accepted for --kind=edm are ddpmpp, ncsnpp, adm"),
        ("di", dict(cfg="cifar"), "accepted for --kind=di are fashion, fashion-32, cifar10-uncond"),
        ("gan", dict(aug="fixed"), "--aug=fixed needs --p"),
        ("gan", dict(aug="noaug", p=0.2), "--p=0.2 has no effect with --aug=noaug"),
        ("gan", dict(aug="noaug", augpipe="bg"), "--augpipe=bg has no effect with --aug=noaug"),
        ("gan", dict(aug="fixed", p=0.2, target=0.5), "--target=0.5 has no effect with --aug=fixed"),
        ("gan", dict(subset=0), "--subset=0: accepted is a number above 0"),
        ("gan", dict(freezed=-1), "--freezed=-1: accepted is a number from 0 to 1000"),
        ("gan", dict(augment=0.1), "--augment=0.1 belongs to --kind=edm"),
        ("edm", dict(fake_noise_law="vp"), "--fake-noise-law=vp belongs to --kind=di"),
        ("gan", dict(noise_law="vp"), "--noise-law=vp belongs to --kind=edm or di"),
        ("edm", dict(augment=1.5), "--augment=1.5: accepted is a number from 0 to 1"),
        ("edm", dict(freezed=1), "--freezed=1 belongs to --kind=gan"),
        ("edm", dict(freeze=("mapping", "b4")), "--freeze=mapping,b4 belongs to --kind=gan or di"),
        ("gan", dict(data=""), "--data= names nothing: give a value, or leave it out"),
        ("di", dict(cfg="ffhq64", subset=10), "--subset=10 has no effect without --adv-weight"),
    ],
)
def test_what_has_no_effect_or_is_unknown_is_refused(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(kind, **given)
