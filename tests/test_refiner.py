"""--student=refiner: a GAN with the teacher's network behind it, trained, frozen, written and drawn."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from stylegan_di.commands import compare, project
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import save_image, to_uint8
from stylegan_di.networks.refiner import Refiner
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import load_generator, load_snapshot, save_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.refiner import SIGMA_INIT, RefinerStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training.methods import diff_instruct
from tests.gaussians import GaussianDenoiser
from tests.test_conformance import MAKE_STUDENTS, _edm, _gan
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import edm_network, gan_networks, save_files

pytestmark = pytest.mark.usefixtures("small_grids")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def parts() -> tuple[StyleGAN2Student, EDMTeacher, RefinerStudent]:
    gan, teacher = StyleGAN2Student(_gan()), EDMTeacher(_edm())
    return gan, teacher, RefinerStudent.of(gan, teacher, 0.7)


def rng(n: int, purpose: str = "some") -> SampleRandom:
    return SampleRandom(0, purpose, 0, range(n), torch.device("cpu"))


def test_what_it_is_compared_with_is_the_gan_that_it_was_made_of() -> None:
    gan, _, refiner = parts()
    z, labels = torch.randn(3, 8), torch.eye(3)
    copied = copy.deepcopy(refiner)  # as the average of a training is
    torch.testing.assert_close(copied.origin(z, labels), gan(z, labels), rtol=0, atol=0)
    assert copied.origin is not copied
    again = RefinerStudent.of(RefinerStudent(refiner.network), parts()[1], 0.7)
    assert again.origin is again
    assert gan.origin is gan


def test_an_image_is_the_gans_denoised_once() -> None:
    gan, teacher, refiner = parts()
    z, labels, sigma = torch.randn(3, 8), torch.eye(3), torch.full([3], 0.7)
    noise = refiner.network.noise_const
    expected = teacher(gan(z, labels) + 0.7 * noise, sigma, labels)
    torch.testing.assert_close(refiner(z, labels), expected, rtol=0, atol=0)
    still = refiner.with_options(noise_mode="none")(z, labels)
    torch.testing.assert_close(
        still, teacher(gan.with_options(noise_mode="none")(z, labels), sigma, labels), rtol=0, atol=0
    )
    streams = rng(3)
    images = gan(z, labels, rng=streams)
    expected = teacher(images + 0.7 * streams.normal(1, 8, 8), sigma, labels)
    torch.testing.assert_close(refiner(z, labels, rng=rng(3)), expected, rtol=0, atol=0)


def test_it_is_drawn_by_seed_as_the_gan_is() -> None:
    gan, teacher, refiner = parts()
    drawn = refiner.draw([5, 6], class_index=1)
    labels = torch.eye(3)[[1, 1]]
    expected = teacher(
        gan.draw([5, 6], class_index=1) + 0.7 * refiner.network.noise_const, torch.full([2], 0.7), labels
    )
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    both = refiner.with_options(noise_mode="random").draw([5, 6])
    torch.testing.assert_close(refiner.with_options(noise_mode="random").draw([6]), both[1:])
    assert not torch.equal(both, refiner.draw([5, 6]))


def test_the_gan_or_the_denoiser_can_be_frozen() -> None:
    for frozen, trained in (("generator", "denoiser"), ("denoiser", "generator")):
        _, _, refiner = parts()
        refiner.freeze([frozen])
        refiner.requires_grad_(True).train()
        own = {name.split(".")[1] for name, value in refiner.named_parameters() if value.requires_grad}
        assert own == {trained}
    with pytest.raises(UserError, match="leaves nothing to train"):
        parts()[2].freeze(["generator", "denoiser"])
    with pytest.raises(UserError, match="--freeze=b4: there is no such part; it has generator, denoiser"):
        parts()[2].freeze(["b4"])


def test_networks_that_do_not_match_are_refused() -> None:
    gan, teacher, _ = parts()
    with pytest.raises(UserError, match="teacher and GAN do not match"):
        RefinerStudent.of(gan, EDMTeacher(edm_network(label_dim=0)), 1.0)
    network: Any = gan_networks(resolution=16)["G"]
    with pytest.raises(UserError, match="teacher and GAN do not match"):
        RefinerStudent.of(StyleGAN2Student(network), teacher, 1.0)
    with pytest.raises(UserError, match="wants a StyleGAN2 or StyleGAN3 as --gan-pkl, and this is a one-step student"):
        RefinerStudent.of(OneStepStudent(_edm(), 2.5), teacher, 1.0)
    kwargs = Refiner.of(gan.network, _edm(), 1.0).init_kwargs
    with pytest.raises(ValueError, match="a 'Discriminator'; accepted are Generator, stylegan3"):
        Refiner(8, 1, 3, **kwargs | {"generator": {"class_name": "Discriminator"}})
    with pytest.raises(ValueError, match="sigma_init=0 is no noise level"):
        Refiner(8, 1, 3, **kwargs | {"sigma_init": 0})


@pytest.mark.parametrize(
    ("gan", "extra"),
    [
        ("gan", []),
        ("gan", ["--freeze=generator", "--sigma-init=0.5", "--snap-format=safetensors"]),
        ("stylegan3", []),
    ],
)
def test_a_run_goes_on_exactly_and_its_file_is_a_refiner(
    files: dict[str, str], tmp_path: Path, gan: str, extra: list[str]
) -> None:
    arguments = ["--kind=di", "--student=refiner", f"--gan-pkl={files[gan]}", f"--teacher={files['teacher']}",
                 "--metrics=none", "--tick=0.016", *SHORT, *extra]  # fmt: skip
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)
    (snapshot,) = folder.glob("network-snapshot-*")
    found = load_generator(snapshot)
    assert isinstance(found, RefinerStudent)
    assert found.network.sigma_init == (0.5 if extra else 1.0)
    start = load_snapshot(files[gan]).networks["G_ema"]
    assert start is not None
    moved = [
        name
        for name, value in start.named_parameters()
        if not torch.equal(value, found.network.generator.state_dict()[name])
    ]
    assert bool(moved) == (not extra)
    out = tmp_path / "images"
    result = CliRunner().invoke(
        generate.main, [f"--network={snapshot}", "--seeds=3", "--class=2", f"--outdir={out}", "--device=cpu"]
    )
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(out / "seed0003.png"))
    assert np.array_equal(pixels, to_uint8(found.draw([3], class_index=2))[0, 0].numpy())


def test_a_network_of_edm2_is_put_behind_a_gan(tmp_path: Path) -> None:
    made = RefinerStudent.of(StyleGAN2Student(_gan()), EDMTeacher(edm_network(precond="edm2")), 0.7)
    found = load_generator(save(made, tmp_path / "refiner.pkl"))
    assert torch.equal(found.draw([1], class_index=2), made.draw([1], class_index=2))


def test_a_refiner_keeps_its_noise_level() -> None:
    _, teacher, refiner = parts()
    assert RefinerStudent.of(refiner, teacher, SIGMA_INIT).network.sigma_init == 0.7
    with pytest.raises(UserError, match=r"--sigma-init=2: --gan-pkl is a refiner already, .* level 0\.7: leave it out"):
        RefinerStudent.of(refiner, teacher, 2.0)


def test_networks_that_cannot_be_joined_are_refused_before_the_teachers_samples_are_drawn(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff_instruct, "kept_samples", lambda *_: pytest.fail("samples are drawn"))
    given = [f"--gan-pkl={files['r3gan']}", f"--teacher={files['teacher']}", "--critic=features", "--data=teacher:9"]
    result = invoke("--kind=di", "--student=refiner", *given, "--metrics=none", f"--outdir={tmp_path / 'runs'}")
    assert "wants a StyleGAN2 or StyleGAN3 as --gan-pkl, and this is a R3GAN" in result.output
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="a GaussianDenoiser cannot be put behind a GAN, as --student=refiner does"):
        RefinerStudent.of(parts()[0], GaussianDenoiser(0.0, 1.0), 1.0)


def save(student: RefinerStudent, path: Path) -> Path:
    save_snapshot(path, student.entries(), extras=student.extras({}), metadata={})
    return path


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_an_image_is_projected_through_the_gan(kind: str, tmp_path: Path) -> None:
    """The w of an image of its own: the distance falls, the file is drawn again, and with another class otherwise."""
    gan = MAKE_STUDENTS[kind]()
    refiner = RefinerStudent.of(gan, EDMTeacher(_edm()), 0.7)
    file, target, out = save(refiner, tmp_path / "refiner.pkl"), tmp_path / "target.png", tmp_path / "out"
    save_image(to_uint8(refiner.draw([4], class_index=2))[0], target)
    result = CliRunner().invoke(
        project.main,
        [f"--network={file}", f"--target={target}", "--class=2", "--num-steps=40", "--save-video=false",
         f"--outdir={out}", "--device=cpu"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    start, end = map(float, re.findall(r"([0-9.e-]+) at the", result.output))
    assert end < 0.7 * start
    drawn = [f"--network={file}", f"--projected-w={out / 'projected_w.npz'}", f"--outdir={out}", "--device=cpu"]
    assert CliRunner().invoke(generate.main, [*drawn, "--class=2"]).exit_code == 0
    assert (out / "proj00.png").read_bytes() == (out / "proj.png").read_bytes()
    assert CliRunner().invoke(generate.main, [*drawn, "--class=1"]).exit_code == 0
    assert (out / "proj00.png").read_bytes() != (out / "proj.png").read_bytes()
    for given, told in ([], "conditional: give --class"), (["--class=2", "--noise-mode=none"], "--noise-mode is for"):
        refused = CliRunner().invoke(generate.main, [*drawn, *given])
        assert (refused.exit_code, told in refused.output) == (2, True), refused.output


def test_it_is_compared_with_its_gan_and_with_no_other_student(tmp_path: Path) -> None:
    gan, _, refiner = parts()
    file, out = save(refiner, tmp_path / "refiner.pkl"), tmp_path / "out"
    save_snapshot(tmp_path / "gan.pkl", gan.entries(), extras=gan.extras({}), metadata={})
    options = ["--num=6", "--columns=3", "--psi=0.5,1", f"--outdir={out}", "--device=cpu"]
    result = CliRunner().invoke(compare.main, [str(tmp_path / "gan.pkl"), str(file), *options])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "compare.json").read_text())
    z = refiner.sample_latents(6, rng=SampleRandom(0, "compare", 0, range(6)))
    labels = torch.eye(3)[torch.arange(6) % 3]
    moved = (gan(z, labels).clamp(-1, 1) - refiner(z, labels).clamp(-1, 1)).abs().mean()
    assert report["pixel_distance"] == pytest.approx(float(moved.detach()), rel=1e-5)
    decoder = MAKE_STUDENTS["decoder"]()
    save_snapshot(tmp_path / "decoder.pkl", decoder.entries(), extras=decoder.extras({}), metadata={})
    refused = CliRunner().invoke(compare.main, [str(file), str(tmp_path / "decoder.pkl"), *options])
    assert "kind StyleGAN2 against decoder" in refused.output


def test_what_it_needs(files: dict[str, str]) -> None:
    gan, teacher = f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}"
    for given in ([teacher], [gan, "--teacher=online", f"--data={files['data']}", "--cond=true"]):
        assert (
            "--student=refiner joins a GAN and a teacher's network"
            in invoke("--kind=di", "--student=refiner", *given).output
        )
    assert "--sigma-init=2 has no effect with --gan-pkl" in invoke("--kind=di", gan, teacher, "--sigma-init=2").output
