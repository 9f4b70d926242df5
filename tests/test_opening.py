"""Files opened to look at what they make: which kind of network comes out, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stylegan_di.commands import compare, metrics
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.opening import asked_for, one_asked_for, one_label, open_gan, open_generator
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.snapshots.blueprint import CLASSES, Blueprint, ImageShape, image_shape
from stylegan_di.snapshots.checkpoint import load_generator, load_snapshot, save_snapshot
from stylegan_di.snapshots.formats import read_contents
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tests.tiny import edm_network, gan_networks, stylegan3_networks

GOLDEN = Path(__file__).parent / "golden" / "pickles"
SG2_COND, SG2_UNCOND, EDM_COND = (str(GOLDEN / f"{name}.pkl") for name in ("sg2-cond", "sg2-uncond", "edm-cond"))


@pytest.fixture
def one_step(tmp_path: Path) -> str:
    save_snapshot(tmp_path / "s.pkl", {"ema": edm_network()}, extras={"sigma_init": 2.5}, metadata={})
    return str(tmp_path / "s.pkl")


def test_what_a_file_makes(one_step: str) -> None:
    for network, kind in (
        (SG2_COND, StyleGAN2Student), (EDM_COND, DiffusionSampler), (one_step, OneStepStudent),
    ):  # fmt: skip
        generator = open_generator(network)
        assert asked_for(generator, "2", None) == [2]
        assert type(generator) is kind
        assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert type(open_gan(SG2_UNCOND)) is StyleGAN2Student


def test_one_of_several_networks() -> None:
    for which in ("G", "G_ema"):
        opened, expected = open_generator(SG2_COND, which=which), load_generator(SG2_COND, which)
        torch.testing.assert_close(opened.draw([1]), expected.draw([1]), rtol=0, atol=0)
    with pytest.raises(UserError, match="--which=Sg is not in it"):
        open_generator(SG2_COND, which="Sg")


def test_a_gan_is_asked_for_and_found_is_another(one_step: str) -> None:
    for network, kind in ((EDM_COND, "diffusion teacher"), (one_step, "one-step student")):
        with pytest.raises(UserError) as refusal:
            open_gan(network)
        assert str(refusal.value) == (
            f"--network={network} is a {kind}, which has no w. Pass a StyleGAN2 or StyleGAN3 network, or use "
            "stylegan-di generate with --seeds"
        )


def test_classes_that_are_asked_for() -> None:
    conditional, plain, fashion = open_gan(SG2_COND), open_generator(SG2_UNCOND), open_gan("fashion-gan.pkl")
    assert asked_for(conditional, "9,0-2,1", None) == [9, 0, 1, 2]
    assert asked_for(fashion, "Ankle boot,3", None) == [9, 3]
    assert one_asked_for(fashion, "bag", None) == 8
    assert one_asked_for(conditional, None, None) is None
    (label,) = asked_for(conditional, None, [0.2, 0.7, *[0.0] * 8])
    torch.testing.assert_close(label, torch.tensor([0.2, 0.7, *[0.0] * 8]))
    for generator, arguments, message in (
        (conditional, ("10", None), "--class=10: this network has the classes 0 to 9"),
        (conditional, ("2-1", None), "--class=2-1: this network has the classes 0 to 9"),
        (fashion, ("sneeker", None), "shirt, sneaker, bag, ankle boot; did you mean sneaker\\?"),
        (conditional, (None, [1.0]), "--label=1: accepted are 10 finite numbers"),
        (conditional, ("1", [1.0]), "--class and --label both"),
        (plain, ("0", None), "--class=0: this network is unconditional; leave it out"),
        (plain, (None, [1.0]), "--label: this network is unconditional; leave it out"),
    ):
        with pytest.raises(UserError, match=message):
            asked_for(generator, *arguments)
    with pytest.raises(UserError, match="--class=0-3: 4 classes; accepted is one here"):
        one_asked_for(conditional, "0-3", None)


def test_images_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "latents.pkl"
    save_snapshot(path, {"ema": edm_network(img_channels=4)}, extras={}, metadata={})
    with pytest.raises(UserError, match=r"latents\.pkl: its images have 4 channels, and pictures 1 or 3"):
        open_generator(str(path))


def test_commands_that_look_at_pictures_refuse_what_are_none(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "four.pkl", stylegan3_networks(channels=4), extras={}, metadata={})
    four = str(tmp_path / "four.pkl")
    for command, arguments in (
        (metrics.main, [f"--network={four}", "--metrics=texture"]),
        (compare.main, [SG2_COND, four]),
    ):
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 2
        assert f"{four}: its images have 4 channels, and pictures 1 or 3; a diffusion model of latents" in result.output


def test_the_label_of_one_class() -> None:
    conditional, plain = load_generator(SG2_COND), load_generator(SG2_UNCOND)
    assert one_label(plain, None) is None
    torch.testing.assert_close(one_label(conditional, 9), torch.eye(10)[9:])
    with pytest.raises(UserError, match="this network is conditional: give --class, from 0 to 9"):
        one_label(conditional, None)


# What images a file's networks make, without building them.


@pytest.mark.parametrize("name", ["sg2-cond", "sg2-uncond", "edm-cond", "edm-uncond", "tf-legacy-synthetic-skip"])
def test_the_image_shape_of_a_golden_file(name: str) -> None:
    source = str(GOLDEN / f"{name}.pkl")
    blueprints = {
        entry: blueprint
        for entry, blueprint in read_contents(Path(source).read_bytes(), source).blueprints.items()
        if blueprint is not None
    }
    networks = load_snapshot(source).networks
    images = [entry for entry in blueprints if entry != "augment_pipe"]
    assert images == (["ema"] if name.startswith("edm") else ["G", "D", "G_ema"])
    for entry in images:
        network: Any = networks[entry]
        classes = network.label_dim if entry == "ema" else network.c_dim
        assert image_shape(blueprints[entry]) == ImageShape(network.img_resolution, network.img_channels, classes)
    expected = {"sg2-cond": 10, "sg2-uncond": 0, "edm-cond": 10, "edm-uncond": 0, "tf-legacy-synthetic-skip": 3}[name]
    assert image_shape(blueprints[images[0]]) == ImageShape(16, 3, expected)
    for entry in blueprints.keys() - set(images):
        assert image_shape(blueprints[entry]) is None  # augmentation takes images of any size


@pytest.mark.parametrize("precond", ["vp", "ve", "iddpm", "edm", "edm2"])
def test_every_networks_shape_is_in_its_arguments(precond: str) -> None:
    network: Any = edm_network(label_dim=0, precond=precond)
    positional = Blueprint(type(network).__name__, (8, 1, 0), {}, {})
    named = Blueprint(type(network).__name__, (), dict(network.init_kwargs), {})
    assert image_shape(named) == image_shape(positional) == ImageShape(8, 1, 0)
    for network in gan_networks().values():
        if network is not None:
            named = Blueprint(type(network).__name__, (), dict(network.init_kwargs), {})
            assert image_shape(named) == ImageShape(8, 1, 3)


@pytest.mark.parametrize(
    ("class_name", "args", "kwargs"),
    [
        ("Other", (), {"img_resolution": 8, "img_channels": 1, "label_dim": 0}),
        ("EDMPrecond", (), {"img_resolution": 8}),
        ("EDMPrecond", (8, 1), {"img_resolution": 8}),
        ("EDMPrecond", (8.0, 1), {}),
        ("EDMPrecond", (8, "3"), {}),
        ("EDMPrecond", (True, 1), {}),
        ("Generator", (), {"z_dim": 8, "c_dim": None, "w_dim": 8, "img_resolution": 8, "img_channels": 1}),
        ("AugmentPipe", (), {}),
    ],
)
def test_arguments_that_do_not_tell(class_name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    assert image_shape(Blueprint(class_name, args, kwargs, {})) is None


def test_every_class_has_arguments_of_its_own() -> None:
    """Their signature is then the constructor's in every version of Python."""
    for cls in CLASSES.values():
        assert "__init__" in cls.__dict__
        assert list(inspect.signature(cls).parameters) != ["args", "kwargs"]
