"""stylegan-di convert and inspect through their command lines, and ONNX against PyTorch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from stylegan_di.commands import convert
from stylegan_di.commands import inspect as inspect_pickle
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots import onnx
from stylegan_di.snapshots.checkpoint import load_denoiser, load_generator, load_snapshot, save_snapshot
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.snapshots.onnx import exported
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.r3gan import R3GANStudent
from stylegan_di.torch_utils.persistence import write_pickle
from stylegan_di.zoo import SHIPPED, terms_of
from tests import hostile
from tests.test_checkpoint import GOLDEN, assert_same_weights
from tests.test_conformance import MAKE_STUDENTS
from tests.tiny import edm_network, gan_networks, r3gan_networks, save_gan, save_teacher, stylegan3_networks

ONNX = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(ONNX), reason=f"not installed: {', '.join(ONNX)} (pip install '.[onnx]')")


def run(tool: Any, *arguments: object) -> Result:
    return CliRunner().invoke(tool.main, [str(argument) for argument in arguments])


def converted(*arguments: object) -> str:
    result = run(convert, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(tool: Any, *arguments: object) -> str:
    result = run(tool, *arguments)
    assert result.exit_code == 2, result.output
    return result.output


# Converting.


def test_a_tensorflow_file_becomes_one_for_pytorch(tmp_path: Path) -> None:
    source = GOLDEN / "tf-legacy-synthetic-skip.pkl"
    output = converted(source, tmp_path / "n.pkl")
    assert "written by TensorFlow-era StyleGAN2" in output
    first, second = load_snapshot(source), load_snapshot(tmp_path / "n.pkl")
    assert list(second.networks) == ["G", "D", "G_ema", "augment_pipe"]
    for name in ("G", "D", "G_ema"):
        assert_same_weights(second.networks[name], first.networks[name])
    assert second.metadata["converted_from"] == str(source)
    assert len(second.metadata["converted_sha256"]) == 64


def test_provenance_stays(tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"
    save_snapshot(path, gan_networks(), extras={"training_set_kwargs": {"path": "x"}}, metadata={"kimg": 2.0})
    converted(path, tmp_path / "g.safetensors")
    converted(tmp_path / "g.safetensors", tmp_path / "sg3.pkl", "--for=stylegan3")
    read = load_snapshot(tmp_path / "sg3.pkl")
    assert read.metadata["kimg"] == 2.0
    assert read.extras == {"training_set_kwargs": {"path": "x"}}
    assert b"training.networks_stylegan2" in (tmp_path / "sg3.pkl").read_bytes()


def test_one_of_several_networks(tmp_path: Path) -> None:
    networks = gan_networks(seed=1) | {"G": gan_networks(seed=2)["G"]}
    save_snapshot(tmp_path / "g.pkl", networks, extras={}, metadata={})
    converted(tmp_path / "g.pkl", tmp_path / "one.safetensors", "--which=G")
    read = load_snapshot(tmp_path / "one.safetensors")
    assert list(read.networks) == ["G_ema"]  # the entry that tools look for
    assert_same_weights(read.networks["G_ema"], networks["G"])
    output = refused(convert, tmp_path / "g.pkl", tmp_path / "x.pkl", "--which=ema")
    assert "--which=ema is not in it; its networks are G, D, G_ema" in output


def test_a_student_of_another_project_is_marked(tmp_path: Path) -> None:
    source = tmp_path / "di.pkl"
    source.write_bytes(write_pickle({"ema": edm_network(seed=1), "Sg": edm_network(seed=2)}))
    output = converted(source, tmp_path / "student.pkl", "--which=ema", "--sigma-init=2.5")
    assert "nothing in it tells whether 'ema' is a teacher or a one-step student" in output
    student = load_generator(tmp_path / "student.pkl")
    assert isinstance(student, OneStepStudent)
    assert student.sigma_init == 2.5
    assert_same_weights(student.network, edm_network(seed=1))
    converted(source, tmp_path / "score.pkl", "--which=Sg")
    assert_same_weights(load_denoiser(tmp_path / "score.pkl").network, edm_network(seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["n.pt"], "its name must end in .pkl, .safetensors, .onnx"),
        (["n.safetensors", "--for=stylegan3"], "--for=stylegan3 is for OUT.pkl; leave it out"),
        (["n.pkl", "--trunc=0.5"], "--trunc=0.5 is for OUT.onnx; leave it out"),
        (["n.onnx", "--trunc=nan"], "--trunc=nan: accepted is a number such as 0.7"),
        (["n.pkl", "--sigma-init=2.5"], "--sigma-init=2.5 is for a one-step student ('ema')"),
    ],
)
def test_conversions_that_make_no_sense(options: list[str], message: str, tmp_path: Path) -> None:
    source = save_gan(tmp_path / "g.pkl")
    assert message in refused(convert, source, tmp_path / options[0], *options[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]


def test_whose_code_is_asked_of_stylegan2s_networks_alone(tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "t.pkl")
    message = refused(convert, source, tmp_path / "x.pkl", "--for=stylegan3")
    assert f"--for=stylegan3 is for StyleGANs, and {source} holds none: leave it out" in message
    assert not (tmp_path / "x.pkl").exists()


def test_what_the_format_has_no_place_for_is_named(tmp_path: Path) -> None:
    source = tmp_path / "g.pkl"
    source.write_bytes(write_pickle({"G_ema": gan_networks()["G_ema"], "statistics": torch.zeros(2)}))
    message = refused(convert, source, tmp_path / "g.safetensors")
    assert "not all of it can be written as .safetensors: a Tensor cannot be written to a snapshot" in message
    assert not (tmp_path / "g.safetensors").exists()


# ONNX.


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@needs_onnx
def test_a_gan_as_onnx_gives_its_images(tmp_path: Path) -> None:
    """Truncated, conditional, of any batch size."""
    source = save_gan(tmp_path / "g.pkl")
    converted(source, tmp_path / "g.onnx", "--trunc=0.5")
    runtime = session(tmp_path / "g.onnx")
    assert [value.name for value in runtime.get_inputs()] == ["z", "labels"]
    assert [value.name for value in runtime.get_outputs()] == ["images"]
    network: Any = load_generator(source).network
    assert float(network.mapping.w_avg.abs().max()) == 0  # so truncation shows
    for count in (1, 5):
        z = torch.randn([count, 8], generator=torch.Generator().manual_seed(count))
        labels = torch.eye(3)[torch.arange(count) % 3]
        (images,) = runtime.run(None, {"z": z.numpy(), "labels": labels.numpy()})
        expected = network(z, labels, truncation_psi=0.5, noise_mode="const")
        torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-5)
    assert runtime.get_modelmeta().custom_metadata_map["converted_from"] == str(source)


def test_packages_that_cannot_write_a_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no decomposition\nof this")

    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(onnx, "version", lambda name: "0.4")
    monkeypatch.setattr(torch.onnx, "export", fail)
    result = run(convert, save_gan(tmp_path / "g.pkl"), tmp_path / "g.onnx")
    assert result.exit_code == 2
    assert result.output.endswith(
        "Error: ONNX: torch 0.4, onnx 0.4, onnxscript 0.4 cannot write this network (RuntimeError: no decomposition of "
        "this); torch 2.13 with onnx 1.20 and onnxscript 0.6.2 can: install these or newer\n"
    )


@needs_onnx
def test_a_stylegan3_as_onnx_gives_its_images(tmp_path: Path) -> None:
    source = save_gan(tmp_path / "g.pkl", stylegan3_networks, conv_kernel=1, use_radial_filters=True)
    converted(source, tmp_path / "g.onnx")
    runtime, network = session(tmp_path / "g.onnx"), load_generator(source).network
    for count in (1, 3):
        z = torch.randn([count, 8], generator=torch.Generator().manual_seed(count))
        labels = torch.eye(3)[torch.arange(count) % 3]
        (images,) = runtime.run(None, {"z": z.numpy(), "labels": labels.numpy()})
        torch.testing.assert_close(torch.from_numpy(images), network(z, labels), rtol=0, atol=1e-5)


@needs_onnx
def test_a_denoiser_as_onnx(tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "t.pkl", label_dim=0)
    converted(source, tmp_path / "t.onnx")
    runtime = session(tmp_path / "t.onnx")
    assert [value.name for value in runtime.get_inputs()] == ["x", "sigma"]
    x = torch.randn([3, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 10.0])
    (images,) = runtime.run(None, {"x": x.numpy(), "sigma": sigma.numpy()})
    expected = load_denoiser(source)(x, sigma)
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("precond", ["edm", "edm2"])
def test_a_one_step_student_as_onnx(precond: str, tmp_path: Path) -> None:
    """Also of EDM2's networks, whose normalisation must not fix the batch."""
    source = tmp_path / "s.pkl"
    save_snapshot(source, {"ema": edm_network(precond=precond)}, extras={"sigma_init": 2.5}, metadata={})
    converted(source, tmp_path / "s.onnx")
    runtime = session(tmp_path / "s.onnx")
    assert [value.name for value in runtime.get_inputs()] == ["z", "labels"]
    z = torch.randn([3, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    (images,) = runtime.run(None, {"z": z.numpy(), "labels": torch.eye(3).numpy()})
    expected = load_generator(source)(z, torch.eye(3))
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-5)


def test_what_becomes_a_graph_gives_the_models_images_for_any_batch_size() -> None:
    """Without the packages for ONNX: the graph that they are given, in float32 and without the project's operators."""
    generator = torch.Generator().manual_seed(0)
    gan = load_generator(GOLDEN / "sg2-cond.pkl").with_options(trunc=0.5)
    half = load_generator(GOLDEN / "sg2-uncond.pkl")
    teacher, unconditional = load_denoiser(GOLDEN / "edm-cond.pkl"), load_denoiser(GOLDEN / "edm-uncond.pkl")
    one_step = OneStepStudent(edm_network(precond="edm2"), 2.5)
    assert any(getattr(block, "use_fp16", False) for block in half.modules())
    plain: dict[Any, Any] = {half: lambda z: half.network(z, None, noise_mode="const", force_fp32=True)}
    for model in (gan, half, teacher, unconditional, one_step):
        graph = exported(model)
        assert not [node for node in graph.graph.nodes if "stylegan_di" in str(node.target)]
        values = [node.meta.get("val") for node in graph.graph.nodes]
        assert torch.float16 not in {value.dtype for value in values if isinstance(value, torch.Tensor)}
        for count in (1, 5):
            image = [count, model.img_channels, model.img_resolution, model.img_resolution]
            shape = image if model is not gan and model is not half else [count, 32]
            inputs = [torch.randn(shape, generator=generator)]
            if model in (teacher, unconditional):
                inputs.append(torch.rand([count], generator=generator) + 0.1)
            if model.label_dim:
                inputs.append(torch.eye(model.label_dim)[torch.arange(count) % model.label_dim])
            with torch.no_grad():
                found, expected = graph.module()(*inputs), plain.get(model, model)(*inputs)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert list(found.shape) == image
    assert any(getattr(block, "use_fp16", False) for block in half.modules())  # as it was


@pytest.mark.parametrize("name", ["refiner", "flow", "radiance"])
def test_students_become_graphs_for_any_batch_size(name: str) -> None:
    student = MAKE_STUDENTS[name]().eval().requires_grad_(False)
    graph = exported(student)
    assert not [node for node in graph.graph.nodes if "stylegan_di" in str(node.target)]
    for count in (1, 5):
        z = student.sample_latents(count, rng=SampleRandom(0, "z", 0, range(count)))
        labels = torch.eye(3)[torch.arange(count) % 3]
        torch.testing.assert_close(graph.module()(z, labels), student(z, labels), rtol=1e-4, atol=1e-5)


def test_the_graph_of_an_r3gan_computes_in_float32() -> None:
    networks = {halves: R3GANStudent(r3gan_networks(halves=halves)["G_ema"]) for halves in (0, 1)}  # of equal weights
    graph = exported(networks[1])
    values = [node.meta.get("val") for node in graph.graph.nodes]
    assert torch.bfloat16 not in {value.dtype for value in values if isinstance(value, torch.Tensor)}
    z, labels = torch.randn([2, 8], generator=torch.Generator().manual_seed(0)), torch.eye(3)[:2]
    with torch.no_grad():
        torch.testing.assert_close(graph.module()(z, labels), networks[0](z, labels), rtol=1e-4, atol=1e-4)
        assert not torch.equal(networks[1](z, labels), networks[0](z, labels))  # it is as it was


@pytest.mark.parametrize(("sigma_init", "kind"), [(None, "diffusion teacher"), (2.5, "one-step student")])
def test_truncation_is_of_gans(sigma_init: float | None, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "n.pkl"
    extras = {} if sigma_init is None else {"sigma_init": sigma_init}
    save_snapshot(source, {"ema": edm_network()}, extras=extras, metadata={})
    message = refused(convert, source, tmp_path / "x.onnx", "--trunc=0.5")
    assert f"--trunc=0.5 is not for a {kind}, which this network is: leave it out" in message
    assert not (tmp_path / "x.onnx").exists()


def test_without_the_packages_onnx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    message = refused(convert, save_gan(tmp_path / "g.pkl"), tmp_path / "g.onnx")
    assert "ONNX needs the package onnx, which is not installed: pip install \".[onnx]\" in the clone" in message


# Inspecting.


def test_what_a_golden_file_is() -> None:
    found = inspect_file(GOLDEN / "sg2-cond.pkl")
    assert found.writer == "stylegan2-ada-pytorch"
    assert [(entry.name, entry.class_name, entry.problem) for entry in found.entries] == [
        ("G", "Generator", None), ("D", "Discriminator", None), ("G_ema", "Generator", None),
        ("augment_pipe", "AugmentPipe", None),
    ]  # fmt: skip
    expected = json.loads((GOLDEN / "sg2-cond.expected.json").read_text())["init_kwargs"]["G_ema"]
    assert found.entries[2].arguments == expected
    assert found.others == ("training_set_kwargs",)
    assert len(found.embedded) == 1
    edm = inspect_file(GOLDEN / "edm-cond.pkl")
    assert (edm.writer, edm.others) == ("EDM", ("dataset_kwargs", "loss_fn", "augment_pipe"))


def test_the_report_in_text_and_json() -> None:
    result = run(inspect_pickle, "fashion-gan.pkl")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "network     G_ema (Generator 16x16x1, 10 classes, 232,451 numbers)" in lines
    assert f"origin      {SHIPPED}" in lines
    assert "            w_dim = 64" in lines
    assert any(line.startswith("provenance  command: train.py --kind=gan") for line in lines)
    assert {"provenance  seed: 0", "provenance  kimg: 100"} <= set(lines)
    read = json.loads(run(inspect_pickle, "fashion-gan.pkl", "--json").output)
    assert read["entries"][2]["arguments"]["w_dim"] == 64
    assert read["sha256"] in result.output


def test_numbers_that_json_has_not_are_texts_in_it(tmp_path: Path) -> None:
    metadata = {"metric/fd_fashion": float("nan"), "kimg": float("inf"), "seed": 3.0}
    save_snapshot(tmp_path / "n.pkl", gan_networks(), extras={"training_set_kwargs": {}}, metadata=metadata)
    text = run(inspect_pickle, str(tmp_path / "n.pkl"), "--json").output
    assert json.loads(text)["metadata"] == {"metric/fd_fashion": "nan", "kimg": "inf", "seed": 3.0}


def test_one_sentence() -> None:
    sentence = inspect_file("fashion-teacher.pkl", try_networks=False).sentence()
    assert sentence.startswith("ema (EDMPrecond 16x16x1, 10 classes, ")
    assert sentence.endswith(f"; {SHIPPED}.")


def test_networks_that_cannot_be_used_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "n.pkl"
    path.write_bytes(hostile.gan(**{"mapping.fc0.bias": torch.full([8], float("nan"))}))
    (warning,) = inspect_file(path).warnings
    assert warning == (
        "G_ema cannot be used: NaN or infinite numbers in G_ema.mapping.fc0.bias. Its training diverged or it is "
        "damaged; use an earlier snapshot."
    )


def test_inspecting_runs_nothing_in_the_file(tmp_path: Path) -> None:
    path, mark = hostile.write_edited_source(tmp_path)
    result = run(inspect_pickle, path)
    assert result.exit_code == 0, result.output
    assert "embedded    source with SHA-256 " in result.output
    assert not mark.exists()


def test_what_is_no_network_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.")
    assert "found the global 'os' 'system'" in refused(inspect_pickle, tmp_path / "x.pkl")


def test_terms_of_known_names_reach_what_is_made_from_them(tmp_path: Path) -> None:
    assert "non-commercial" in terms_of("cifar10.pkl")
    assert "CC BY-NC-SA" in terms_of("some/folder/edm-cifar10-32x32-cond-vp.pkl")
    assert terms_of("my-own.pkl") == ""
    save_snapshot(tmp_path / "g.pkl", gan_networks(), extras={}, metadata={"gan_pkl": "cifar10.pkl"})
    (warning,) = inspect_file(tmp_path / "g.pkl").warnings
    assert warning == f"made from cifar10.pkl, whose terms reach it: {terms_of('cifar10.pkl')}"


def test_arguments_are_pythons_numbers(tmp_path: Path) -> None:
    """So that JSON can hold them."""
    network: Any = gan_networks()["G_ema"]
    network._init_kwargs["mapping_kwargs"]["lr_multiplier"] = np.float64(0.01)
    (tmp_path / "n.pkl").write_bytes(write_pickle({"G_ema": network}))
    read = json.loads(run(inspect_pickle, tmp_path / "n.pkl", "--json").output)
    assert read["entries"][0]["arguments"]["mapping_kwargs"]["lr_multiplier"] == 0.01
