"""StyleGAN3 in use: NVlabs' pickles in and out, the student, pictures moved and turned, refinement and resuming."""

import json
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from stylegan_di.commands import convert
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.opening import open_gan
from stylegan_di.networks import stylegan3
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import as_generator, load_snapshot, save_snapshot
from stylegan_di.snapshots.formats import read_contents
from stylegan_di.snapshots.onnx import exported
from stylegan_di.students.stylegan3 import StyleGAN3Student, position_transform
from stylegan_di.torch_utils.persistence import read_pickle
from tests.golden_edm import assert_near
from tests.test_checkpoint import GOLDEN, _attributes, assert_same_weights, expected
from tests.test_resume import invoke, whole_run
from tests.tiny import save_files, stylegan3_networks

pytestmark = pytest.mark.usefixtures("small_grids")

FILE = GOLDEN / "sg3-t.pkl"
MOVED = {"translate": (0.1, -0.05), "rotate": 20.0}
STATE_ATTRS = json.loads((GOLDEN.parent / "format" / "state_attrs_sg3.json").read_text())


def tiny_student(**kwargs: Any) -> StyleGAN3Student:
    network = stylegan3_networks(**kwargs)["G_ema"]
    assert isinstance(network, stylegan3.Generator)
    return StyleGAN3Student(network)


# NVlabs' files.


def test_networks_of_a_golden_file() -> None:
    want, snapshot = expected("sg3-t"), load_snapshot(FILE)
    content = json.loads((GOLDEN / "sg3-t.expected.json").read_text())
    for which in ("G", "G_ema"):
        network: Any = snapshot.networks[which]
        assert network.init_kwargs == content["init_kwargs"][which]
        assert_near(network.mapping(want["z"], None), want[f"{which}/ws"], 1e-5)
        assert_near(network(want["z"], None), want[f"{which}/img_const"], 2e-5)
        for key, tensor in content["tensors"][which].items():
            value = network.state_dict()[key].double()
            assert list(value.shape) == tensor["shape"]
            assert float(value.norm()) == pytest.approx(tensor["l2"], rel=1e-6)
    cut = network(want["z"], None, truncation_psi=0.7, truncation_cutoff=5)[:2]
    assert_near(cut, want["G_ema/img_psi0.7_cut5"], 2e-5)
    discriminator: Any = snapshot.networks["D"]
    assert_near(discriminator(want["G_ema/img_const"], None, force_fp32=True), want["D/logits_fp32"], 1e-5)
    assert_near(discriminator(want["G_ema/img_const"], None), want["D/logits_default_precision"], 1e-2)
    assert snapshot.networks["augment_pipe"].p == pytest.approx(content["augment_pipe"]["p"])  # type: ignore[union-attr]
    assert snapshot.extras == {"training_set_kwargs": content["training_set_kwargs"]}
    network.synthesis.input.transform.copy_(want["transform"])
    assert_near(network(want["z"], None)[:2], want["G_ema/img_transform"], 2e-5)
    assert read_contents(FILE.read_bytes(), "n.pkl").writer == "stylegan3"


@pytest.mark.parametrize("options", [{}, MOVED])
def test_seed_5_gives_nvlabs_image(options: dict[str, Any]) -> None:
    suffix = "_translate0.1,-0.05_rotate20" if options else ""
    student = as_generator(load_snapshot(FILE)).with_options(trunc=0.8, **options)
    pixels = (student.draw([5]).permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    want = expected("sg3-t")[f"generate_seed5_trunc0.8{suffix}_uint8"]
    assert int((pixels.int() - want.int()).abs().max()) <= 1


def test_pickles_are_for_stylegan3s_code(tmp_path: Path) -> None:
    """Whatever target is asked for: sources, and the attributes of every class, plain values all of them."""
    for index, target in enumerate(("stylegan2-ada", "stylegan3")):
        snapshot = load_snapshot(FILE)
        path = tmp_path / f"{index}.pkl"
        save_snapshot(path, snapshot.networks, extras=snapshot.extras, metadata={}, target=target)
        again = load_snapshot(path)
        for name, network in snapshot.networks.items():
            assert_same_weights(network, again.networks[name])
    assert (tmp_path / "0.pkl").read_bytes() == (tmp_path / "1.pkl").read_bytes()
    strings = {a for op, a, _ in pickletools.genops(path.read_bytes()) if "UNICODE" in op.name}
    assert {text for text in strings if "import" in text} == {
        "from training.networks_stylegan3 import *\n",
        "from training.networks_stylegan2 import *\n",
        "from training.augment import *\n",
    }
    assert not {text for text in strings if "numpy" in text}
    written = read_pickle(path.read_bytes(), str(path))
    tables = {"G": STATE_ATTRS["classes"], "D": STATE_ATTRS["classes_networks_stylegan2"]}
    for entry, table in tables.items():
        found = _attributes({entry: written[entry]})
        assert len(found) > 15
        for class_name, own in found:
            optional = {"bias", "embed", "mbstd"}
            assert set(own) | optional == (table[class_name].keys() - {"_buffers", "_parameters"}) | optional


# The student.


def test_the_picture_moves_right_and_down_and_turns_anticlockwise() -> None:
    def seen(transform: torch.Tensor, x: float, y: float) -> list[float]:
        """What of the canonical picture is at a position."""
        return (transform @ torch.tensor([x, y, 1.0], dtype=torch.float64))[:2].tolist()

    assert seen(position_transform((0.25, 0.5), 0), 0.25, 0.5) == pytest.approx([0, 0])
    assert seen(position_transform((0.0, 0.0), 90), 0, -0.5) == pytest.approx([0.5, 0])  # the right side is on top


def test_options() -> None:
    student = tiny_student()
    before = student.draw([1], class_index=0)
    moved = student.with_options(translate=(0.25, 0.0))
    assert torch.equal(student.draw([1], class_index=0), before)
    assert not torch.allclose(moved.draw([1], class_index=0), before)
    assert torch.equal(moved.with_options(trunc=0.5).draw([1], class_index=0),
                       student.with_options(trunc=0.5, translate=(0.25, 0.0)).draw([1], class_index=0))  # fmt: skip
    for options, words in (
        ({"noise_mode": "none"}, "--noise-mode=none is not for a StyleGAN3"),
        ({"translate": (1.0,)}, "--translate=1.0 --rotate=0.0: accepted are finite numbers X,Y and DEG"),
        ({"rotate": float("nan")}, "accepted are finite numbers"),
    ):
        with pytest.raises(UserError, match=words):
            student.with_options(**options)


def test_running_means_move_in_training_except_those_of_frozen_parts() -> None:
    student = tiny_student()
    z, labels = student.sample_latents(4, rng=SampleRandom(0, "z", 0, range(4))), torch.eye(3)[[0, 1, 2, 0]]
    student.freeze(["mapping", "L0"])
    before = {name: value.clone() for name, value in student.named_buffers()}
    assert len(student.running_means()) == 1 + 5
    student.eval()(z, labels)
    assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())
    student.train()(z, labels)
    moved = {name for name, value in student.named_buffers() if not torch.equal(value, before[name])}
    names = student.network.synthesis.layer_names[1:]
    assert moved == {f"network.synthesis.{name}.magnitude_ema" for name in names}


def test_settling() -> None:
    student = tiny_student()
    rng = SampleRandom(0, "w_avg", 0, range(50))
    student.settle(rng)
    rng = SampleRandom(0, "w_avg", 0, range(50))
    labels = torch.eye(3)[rng.integers(3)]
    ws = student.network.mapping(student.sample_latents(50, rng=rng), labels)
    assert_near(student.network.mapping.w_avg, ws[:, 0].mean(0), 1e-6)


def test_the_exported_graph_gives_its_images() -> None:
    """What ONNX is made of, for a batch of another size than the one it was traced with."""
    student = tiny_student(conv_kernel=1, use_radial_filters=True)
    z, labels = student.sample_latents(3, rng=SampleRandom(0, "z", 0, range(3))), torch.eye(3)
    assert_near(exported(student).module()(z, labels), student(z, labels), 1e-5)


def test_only_stylegan3s_code_is_a_target(tmp_path: Path) -> None:
    result = CliRunner().invoke(convert.main, [str(FILE), str(tmp_path / "o.pkl"), "--for=stylegan2-ada"])
    assert result.exit_code != 0
    assert "holds a StyleGAN3, whose classes it has not: leave it out" in result.output
    result = CliRunner().invoke(convert.main, [str(FILE), str(tmp_path / "o.pkl"), "--for=stylegan3", "--which=G"])
    assert result.exit_code == 0, result.output
    assert_same_weights(load_snapshot(tmp_path / "o.pkl").networks["G_ema"], load_snapshot(FILE).networks["G"])


def test_tools_for_w_take_it() -> None:
    gan = open_gan(str(FILE))
    assert isinstance(gan, StyleGAN3Student)
    assert gan.uint8_of_ws(gan.mapped([1, 2]), [1, 2]).shape == (2, 3, 32, 32)


# Pictures.


def test_generate_moves_and_turns(tmp_path: Path) -> None:
    arguments = [f"--network={FILE}", "--seeds=5", "--trunc=0.8", f"--outdir={tmp_path}", "--device=cpu"]
    result = CliRunner().invoke(generate.main, [*arguments, "--translate=0.1,-0.05", "--rotate=20"])
    assert result.exit_code == 0, result.output
    want = expected("sg3-t")["generate_seed5_trunc0.8_translate0.1,-0.05_rotate20_uint8"]
    found = np.asarray(Image.open(tmp_path / "seed0005.png")).astype(int)
    assert np.abs(found - want.numpy()[0].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("network", "arguments", "words"),
    [
        ("sg2-uncond", ["--translate=0.1,0"], "--translate=0.1,0.0 is not for a StyleGAN2"),
        ("edm-uncond", ["--rotate=5"], "--rotate=5.0 is not for a diffusion teacher"),
        ("sg3-t", ["--noise-mode=none"], "--noise-mode=none is not for a StyleGAN3"),
        ("sg3-t", ["--translate=1"], "--translate=1.0 --rotate=0.0: accepted are finite numbers X,Y and DEG"),
        ("sg3-t", ["--translate=a,b"], "not a comma-separated list of float"),
    ],
)
def test_generate_refuses(network: str, arguments: list[str], words: str, tmp_path: Path) -> None:
    files = [f"--network={GOLDEN / network}.pkl", "--seeds=1", f"--outdir={tmp_path}", "--device=cpu"]
    result = CliRunner().invoke(generate.main, [*files, *arguments])
    assert result.exit_code != 0
    assert words in result.output


# Refinement.


def test_refinement_moves_weights_and_running_means_but_no_frozen_part(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    folder = whole_run(
        tmp_path / "runs", "--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['stylegan3']}",
        "--freeze=mapping,input,L0", "--device=cpu", "--batch=4", "--kimg=0.016", "--lr=0.01", "--ema=0.001",
        "--metrics=none",
    )  # fmt: skip
    before, after = load_snapshot(files["stylegan3"]), load_snapshot(max(folder.glob("network-snapshot-*.pkl")))
    first, last = before.networks["G_ema"], after.networks["G_ema"]
    assert isinstance(first, stylegan3.Generator)
    assert isinstance(last, stylegan3.Generator)
    moved = {name for name, value in last.state_dict().items() if not torch.equal(value, first.state_dict()[name])}
    trained = tuple(f"synthesis.{name}." for name in first.synthesis.layer_names[1:])
    kept = ("up_filter", "down_filter")
    assert moved == {name for name in first.state_dict() if name.startswith(trained) and not name.endswith(kept)}
    assert isinstance(as_generator(after), StyleGAN3Student)


def test_preflight_knows_its_parts(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    result = invoke(
        "--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['stylegan3']}", "--freeze=b8",
        "--metrics=none", "--dry-run", f"--outdir={tmp_path}",
    )  # fmt: skip
    assert result.exit_code != 0
    assert "--freeze=b8: there is no such part; it has mapping, input, L0, L1, L2, L3, L4" in result.output
