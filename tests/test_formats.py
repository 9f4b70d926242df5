"""Files of every kind that people have give the networks they hold, bit for bit, and those go back to every format."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.snapshots.checkpoint import (
    as_denoiser,
    as_generator,
    load_denoiser,
    load_generator,
    load_snapshot,
    save_snapshot,
)
from stylegan_di.snapshots.formats import read_contents
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.persistence import (
    Persistent,
    PersistentObject,
    RefusedFileError,
    read_pickle,
    write_pickle,
)
from tests.test_checkpoint import GOLDEN, assert_near, assert_same_weights, expected, golden
from tests.tiny import edm_network, gan_networks
from torch_utils import persistence as as_nvlabs_name_it

TENSORFLOW = "tf-legacy-synthetic-skip"


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# TensorFlow.


def test_tensorflow_networks_are_converted() -> None:
    """State dicts equal to the bit, images and logits to rounding, of what NVlabs' conversion gives."""
    want, snapshot = expected(TENSORFLOW), golden(TENSORFLOW)
    for name in ("G", "D", "G_ema"):
        network = snapshot.networks[name]
        assert network is not None
        state = network.state_dict()
        prefix = f"sd/{name}/"
        assert list(state) == [key.removeprefix(prefix) for key in want if key.startswith(prefix)]
        for key, value in state.items():
            torch.testing.assert_close(value, want[prefix + key], rtol=0, atol=0)
    generator: Any = snapshot.networks["G_ema"]
    assert_near(generator(want["z"], want["c"], noise_mode="const"), want["G_ema/img_const"], 1e-5)
    start: Any = snapshot.networks["G"]
    truncated = start(want["z"], want["c"], truncation_psi=0.6, noise_mode="const")
    assert_near(truncated, want["G/img_const_psi0.6"], 1e-5)
    discriminator: Any = snapshot.networks["D"]
    assert_near(discriminator(want["G_ema/img_const"], want["c"]), want["D/logits"], 1e-5)


def test_tensorflow_arguments_become_ours() -> None:
    network: Any = golden(TENSORFLOW).networks["G_ema"]
    assert network.init_kwargs["synthesis_kwargs"]["channel_base"] == 256  # twice the file's fmap_base
    assert network.init_kwargs["mapping_kwargs"]["w_avg_beta"] == 0.995
    contents = read_contents((GOLDEN / f"{TENSORFLOW}.pkl").read_bytes(), "some.pkl")
    assert contents.writer == "TensorFlow-era StyleGAN2"
    assert len(contents.embedded) == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensorflow_arrays_of_every_protocol(protocol: int) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"c": array, "f": np.asfortranarray(array), "none": np.zeros([0, 2], np.float32), "n": np.float32(1.5)}
    read = read_pickle(pickle.dumps(tree, protocol), "some.pkl")
    for key in ("c", "f", "none"):
        np.testing.assert_array_equal(read[key], tree[key])
    assert read["n"] == 1.5


# The lineage's spellings.


class NVlabsPickler(pickle.Pickler):
    """Writes modules as NVlabs' decorator does: all attributes of today's torch, tensors left to torch itself."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Persistent):
            meta = {"type": "class", "version": 6, "module_src": "raise RuntimeError",
                    "class_name": type(obj).__name__, "state": dict(vars(obj))}  # fmt: skip
            return as_nvlabs_name_it._reconstruct_persistent_obj, (meta,)
        return NotImplemented


def nvlabs_pickle(tree: Any, protocol: int) -> bytes:
    buffer = io.BytesIO()
    NVlabsPickler(buffer, protocol).dump(tree)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["sg2-cond", "edm-uncond"])
def test_states_of_todays_torch_at_every_protocol(name: str, protocol: int, tmp_path: Path) -> None:
    entry = "G_ema" if name.startswith("sg2") else "ema"
    network = golden(name).networks[entry]
    data = nvlabs_pickle({entry: network}, protocol)
    assert "_forward_hooks_always_called" in read_pickle(data, "some.pkl")[entry].state
    read = load_snapshot(save(tmp_path / "n.pkl", data))
    assert_same_weights(read.networks[entry], network)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["sg2-cond", "edm-uncond"])
def test_states_of_torch_1_7_at_every_protocol(name: str, protocol: int, tmp_path: Path) -> None:
    entry = "G_ema" if name.startswith("sg2") else "ema"
    network = golden(name).networks[entry]
    data = write_pickle({entry: network}, protocol=protocol)
    assert data[:2] == bytes([0x80, protocol])
    names = {argument for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}
    assert ("torch_utils.persistence _reconstruct_persistent_obj" in names) == (protocol < 4)
    assert_same_weights(load_snapshot(save(tmp_path / "n.pkl", data)).networks[entry], network)


def test_numpy_1_and_2_spellings(tmp_path: Path) -> None:
    data = (GOLDEN / "sg2-uncond.pkl").read_bytes()
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert new in data
    read = load_snapshot(save(tmp_path / "n.pkl", data.replace(new, old)))
    assert_same_weights(read.networks["G_ema"], golden("sg2-uncond").networks["G_ema"])


def test_channels_last_strides(tmp_path: Path) -> None:
    network: Any = copy.deepcopy(golden("sg2-uncond").networks["G_ema"])
    network.to(memory_format=torch.channels_last)
    assert network.synthesis.b16.conv1.weight.stride()[1] == 1
    data = nvlabs_pickle({"G_ema": network}, 4)
    stored = read_pickle(data, "some.pkl")["G_ema"].state["_modules"]["synthesis"].state["_modules"]["b16"]
    assert stored.state["_modules"]["conv1"].state["_parameters"]["weight"].stride()[1] == 1
    assert_same_weights(
        load_snapshot(save(tmp_path / "n.pkl", data)).networks["G_ema"], golden("sg2-uncond").networks["G_ema"]
    )


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_half_precision_weights_keep_their_values(suffix: str, tmp_path: Path) -> None:
    half = edm_network().half()
    save_snapshot(tmp_path / f"n.{suffix}", {"ema": half}, extras={}, metadata={})
    read = load_denoiser(tmp_path / f"n.{suffix}").network
    for value, stored in zip(read.state_dict().values(), half.state_dict().values(), strict=True):
        assert (value.dtype, stored.dtype) == (torch.float32, torch.float16)
        torch.testing.assert_close(value, stored.float(), rtol=0, atol=0)


# Several networks.


def test_files_that_hold_several_networks(tmp_path: Path) -> None:
    student, score = edm_network(seed=1), edm_network(seed=2)
    path = save(tmp_path / "di.pkl", write_pickle({"ema": student, "Sg": score}))
    assert read_contents(path.read_bytes(), "di.pkl").writer == "Diff-Instruct"
    assert_same_weights(load_denoiser(path).network, student)
    assert_same_weights(load_denoiser(path, which="Sg").network, score)
    snapshot = load_snapshot(path, which="Sg")
    assert snapshot.networks["ema"] is None
    with pytest.raises(UserError, match=r"di\.pkl: --which=G is not in it; its networks are ema, Sg"):
        load_generator(path, which="G")


@pytest.mark.parametrize("which", [None, "ema"])
def test_a_file_that_holds_ema_alone(which: str | None, tmp_path: Path) -> None:
    """As SiD's do; it is taken as a teacher until it is marked as a one-step student."""
    path = save(tmp_path / "sid.pkl", nvlabs_pickle({"ema": edm_network(seed=1)}, 4))
    assert "SiD's" in read_contents(path.read_bytes(), "sid.pkl").writer
    assert_same_weights(load_denoiser(path, which=which).network, edm_network(seed=1))
    with pytest.raises(RefusedFileError, match="a diffusion teacher"):
        load_generator(path, which=which)


class StabilityVAEEncoder(Persistent):
    """As the plain object of this name in EDM2's files of latents, with its arrays."""

    def __init__(self) -> None:
        self.vae_name, self.scale, self.bias = "vae", np.ones([1, 4, 1, 1], np.float32), np.float32(0.5)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_edm2s_encoder_is_no_network(protocol: int, tmp_path: Path) -> None:
    network = edm_network(precond="edm2", img_channels=4).half()
    tree = {"encoder": StabilityVAEEncoder(), "dataset_kwargs": {"path": "x"}, "loss_fn": StabilityVAEEncoder()}
    path = save(tmp_path / "edm2.pkl", nvlabs_pickle(tree | {"ema": network}, protocol))
    contents = read_contents(path.read_bytes(), "edm2.pkl")
    assert (contents.writer, contents.objects) == ("EDM2", ("encoder", "loss_fn"))
    assert_same_weights(load_denoiser(path).network, network.float())


def test_which_of_a_gans_networks(tmp_path: Path) -> None:
    networks = gan_networks(seed=1) | {"G": gan_networks(seed=2)["G"]}
    save_snapshot(tmp_path / "g.pkl", networks, extras={}, metadata={})
    assert_same_weights(load_generator(tmp_path / "g.pkl").network, networks["G_ema"])
    assert_same_weights(load_generator(tmp_path / "g.pkl", which="G").network, networks["G"])
    with pytest.raises(RefusedFileError, match="no generator"):
        load_generator(tmp_path / "g.pkl", which="D")


def test_the_only_network_needs_no_known_name(tmp_path: Path) -> None:
    network = gan_networks()["G"]
    path = save(tmp_path / "n.pkl", write_pickle({"mine": network}))
    assert_same_weights(load_generator(path).network, network)


def test_fake_score_beside_a_student_is_a_denoiser(tmp_path: Path) -> None:
    networks = {"ema": edm_network(seed=1), "Sg": edm_network(seed=2)}
    save_snapshot(tmp_path / "s.pkl", networks, extras={"sigma_init": 2.5}, metadata={})
    assert isinstance(load_generator(tmp_path / "s.pkl"), OneStepStudent)
    assert isinstance(load_denoiser(tmp_path / "s.pkl", which="Sg"), EDMTeacher)
    with pytest.raises(RefusedFileError, match="a one-step student"):
        load_denoiser(tmp_path / "s.pkl")


# stylegan3's repository.


def stylegan3_state(network: torch.nn.Module) -> PersistentObject:
    from stylegan_di.snapshots.writing import to_pickle

    return read_pickle(to_pickle({"G_ema": network}, {}, {}, "stylegan3"), "some.pkl")["G_ema"]


def stylegan3_attributes(module: PersistentObject) -> dict[str, set[str]]:
    """Attributes beyond torch's by class, of a module and those in it."""
    found: dict[str, set[str]] = {}

    def visit(part: PersistentObject) -> None:
        names = list(part.state)
        found.setdefault(part.class_name, set()).update(names[names.index("_modules") + 1 :])
        for child in part.state["_modules"].values():
            visit(child)

    visit(module)
    return found


@pytest.mark.parametrize("name", ["sg2-cond", "sg2-uncond"])
def test_written_for_stylegan3_and_read_back(name: str, tmp_path: Path) -> None:
    original = golden(name)
    path = tmp_path / "sg3.pkl"
    save_snapshot(path, original.networks, extras=original.extras, metadata={}, target="stylegan3")
    read = load_snapshot(path)
    for entry, network in original.networks.items():
        if network is not None:
            assert_same_weights(read.networks[entry], network)
    first, second = as_generator(original), as_generator(read)
    z = torch.randn([3, first.network.z_dim], generator=torch.Generator().manual_seed(0))
    labels = torch.eye(10)[:3] if first.label_dim else None
    torch.testing.assert_close(second(z, labels), first(z, labels), rtol=0, atol=0)
    assert second.network.mapping.w_avg_beta == first.network.mapping.w_avg_beta
    strings = {a for op, a, _ in pickletools.genops(path.read_bytes()) if "UNICODE" in op.name}
    assert "from training.networks_stylegan2 import *\n" in strings
    assert "from training.networks import *\n" not in strings
    assert original.networks["G_ema"].init_kwargs["synthesis_kwargs"]  # type: ignore[index, union-attr]  # not altered


def test_attributes_and_arguments_of_stylegan3s_classes() -> None:
    network = gan_networks()["G_ema"]
    assert network is not None
    state = stylegan3_state(network)
    assert state.state["_init_kwargs"] == {
        "z_dim": 8, "w_dim": 8, "c_dim": 3, "img_resolution": 8, "img_channels": 1,
        "mapping_kwargs": {"num_layers": 2, "w_avg_beta": 0.995},
        "channel_base": 64, "channel_max": 8, "fused_modconv_default": "inference_only",
        "num_fp16_res": 0, "conv_clamp": None,
    }  # fmt: skip
    attributes = stylegan3_attributes(state)
    assert {"in_features", "out_features"} <= attributes["FullyConnectedLayer"]
    assert {"in_channels", "out_channels", "w_dim"} <= attributes["SynthesisLayer"]
    assert {"in_channels", "out_channels", "w_dim"} <= attributes["ToRGBLayer"]
    assert "fused_modconv_default" in attributes["SynthesisBlock"]
    assert "num_fp16_res" in attributes["SynthesisNetwork"]


def test_stylegan3s_default_decay_of_w_avg(tmp_path: Path) -> None:
    """A file of stylegan3's repository that does not name the decay means 0.998, ours would be 0.995."""
    network = gan_networks()["G_ema"]
    assert network is not None
    from stylegan_di.snapshots.stylegan3 import for_stylegan3

    theirs: Any = for_stylegan3(network)
    del theirs._init_kwargs["mapping_kwargs"]["w_avg_beta"]
    path = save(tmp_path / "n.pkl", write_pickle({"G_ema": theirs}))
    read: Any = load_generator(path).network
    assert isinstance(read, Generator)
    assert read.mapping.w_avg_beta == 0.998
    assert read_contents(path.read_bytes(), "n.pkl").writer == "stylegan3 (StyleGAN2)"


def test_stylegan3s_default_precision_and_clamp_are_read_from_the_layers(tmp_path: Path) -> None:
    """Its code has four float16 resolutions and a clamp at 256 where a file does not say; ours has neither."""
    from stylegan_di.snapshots.stylegan3 import for_stylegan3

    widths: dict[str, Any] = dict(channel_base=64, channel_max=8, num_fp16_res=4, conv_clamp=256)
    common: dict[str, Any] = dict(c_dim=0, img_resolution=16, img_channels=1)
    theirs: Any = for_stylegan3(Generator(z_dim=8, w_dim=8, synthesis_kwargs=widths, **common))
    critic: Any = for_stylegan3(Discriminator(**common, **widths))
    for network in (theirs, critic):
        del network._init_kwargs["num_fp16_res"], network._init_kwargs["conv_clamp"]
    tree = {"G": theirs, "D": critic, "G_ema": theirs}
    snapshot = load_snapshot(save(tmp_path / "n.pkl", write_pickle(tree)))
    generator, discriminator = (snapshot.networks[name] for name in ("G_ema", "D"))
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    for network in (generator.synthesis, discriminator):
        blocks = [network.get_submodule(name) for name in ("b8", "b16")]
        assert [(block.use_fp16, block.conv1.conv_clamp) for block in blocks] == [(True, 256)] * 2  # type: ignore[union-attr]
    assert generator.synthesis.get_submodule("b4.conv1").conv_clamp == 256
    assert not generator.synthesis.get_submodule("b4").use_fp16


# To every format.


@pytest.mark.parametrize("name", ["sg2-uncond", "sg2-cond", "sg3-t", TENSORFLOW, "edm-cond", "edm-uncond"])
def test_through_every_format_and_back(name: str, tmp_path: Path) -> None:
    """pickle -> safetensors -> pickle -> pickle for stylegan3 -> safetensors: weights and images to the bit."""
    original = golden(name)
    model: Any = as_denoiser(original) if "ema" in original.networks else as_generator(original)
    snapshot = original
    for step, (suffix, target) in enumerate(
        [("safetensors", "stylegan2-ada"), ("pkl", "stylegan2-ada"), ("pkl", "stylegan3"), ("safetensors", "stylegan3")]
    ):
        path = tmp_path / f"{step}.{suffix}"
        save_snapshot(path, snapshot.networks, extras=snapshot.extras, metadata={"n": 1.0}, target=target)
        snapshot = load_snapshot(path)
    assert snapshot.extras == original.extras
    for entry, network in original.networks.items():
        if network is not None:
            assert_same_weights(snapshot.networks[entry], network)
    again: Any = as_denoiser(snapshot) if "ema" in snapshot.networks else as_generator(snapshot)
    rng = torch.Generator().manual_seed(0)
    labels = torch.eye(model.label_dim)[:2] if model.label_dim else None
    if isinstance(model, EDMTeacher):
        x, sigma = torch.randn([2, 3, 16, 16], generator=rng), torch.tensor(0.5)
        torch.testing.assert_close(again(x, sigma, labels), model(x, sigma, labels), rtol=0, atol=0)
    else:
        z = torch.randn([2, model.network.z_dim], generator=rng)
        torch.testing.assert_close(again(z, labels), model(z, labels), rtol=0, atol=0)


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="target 'stylegan'; accepted are stylegan2-ada, stylegan3"):
        save_snapshot(tmp_path / "g.pkl", gan_networks(), extras={}, metadata={}, target="stylegan")
