"""R3GAN's files: plain pickles of its classes in and out, of both spellings; the student that is made of them."""

from __future__ import annotations

import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.opening import open_gan
from stylegan_di.networks import r3gan
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import as_generator, load_snapshot, save_snapshot
from stylegan_di.snapshots.formats import read_contents
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.snapshots.onnx import exported
from stylegan_di.students.r3gan import R3GANStudent
from stylegan_di.torch_utils.persistence import PersistentModule, RefusedFileError
from tests.test_checkpoint import assert_same_weights
from tests.test_resume import invoke, whole_run
from tests.tiny import r3gan_networks, save_files, save_gan

pytestmark = pytest.mark.usefixtures("small_grids")

CLASSES = {cls._file_class: cls for cls in vars(r3gan).values() if isinstance(cls, type)
           and issubclass(cls, PersistentModule) and cls._file_class is not None}  # fmt: skip
OLD_NAMES = {"training.networks": "training.networks_baseline", "R3GAN": "BaselineGAN"}


def old_name(module: str) -> str:
    package, _, rest = module.partition(".")
    return OLD_NAMES.get(module) or f"{OLD_NAMES[package]}.{rest}"


@pytest.fixture(params=["new", "old"])
def stubs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], type]:
    """Classes without any code of their own in the places where R3GAN's are, by the names of ours."""
    found = {}
    for module, name in CLASSES:
        place = module if request.param == "new" else old_name(module)
        for depth in range(1, len(place.split(".")) + 1):
            part = ".".join(place.split(".")[:depth])
            if part not in sys.modules or part == place:
                monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or types.ModuleType(part))
        stub = type(name, (torch.nn.Module,), {"__module__": place, "__qualname__": name})
        monkeypatch.setattr(sys.modules[place], name, stub, raising=False)
        found[module, name] = stub
    return found


def theirs(module: torch.nn.Module, stubs: dict[tuple[str, str], type]) -> torch.nn.Module:
    """A module of the stubs with the attributes of ours, as R3GAN's training would write it."""
    place = getattr(type(module), "_file_class", None)
    if place is not None:
        copied = stubs[place].__new__(stubs[place])
        copied.__dict__.update({key: value for key, value in vars(module).items() if not key.startswith("_init_")})
    else:
        copied = type(module).__new__(type(module))
        copied.__dict__.update(vars(module))
    copied.__dict__["_modules"] = {name: theirs(child, stubs) for name, child in module._modules.items() if child}
    return copied


def their_file(stubs: dict[tuple[str, str], type], networks: dict[str, Any]) -> bytes:
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}
    state = {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 2e-4, "betas": (0, 0.99), "params": [0, 1]}]}
    tree = {name: theirs(network, stubs) for name, network in networks.items()}
    others = {"training_set_kwargs": {"path": "x.zip"}, "cur_nimg": 1000, "D_opt_state": state, "G_opt_state": state}
    return pickle.dumps(tree | others)


@pytest.mark.parametrize(("c_dim", "halves"), [(3, 0), (0, 1)])
def test_their_files_are_read(stubs: dict[tuple[str, str], type], c_dim: int, halves: int, tmp_path: Path) -> None:
    networks = r3gan_networks(c_dim=c_dim, halves=halves, channels=3)
    path = tmp_path / "n.pkl"
    path.write_bytes(their_file(stubs, networks))
    snapshot = load_snapshot(path)
    for name, network in networks.items():
        assert_same_weights(snapshot.networks[name], network)
    assert snapshot.extras == {"training_set_kwargs": {"path": "x.zip"}, "cur_nimg": 1000}
    contents = read_contents(path.read_bytes(), "n.pkl")
    assert (contents.writer, contents.objects) == ("R3GAN", ("D_opt_state", "G_opt_state"))
    student = as_generator(snapshot)
    assert isinstance(student, R3GANStudent)
    assert torch.equal(student.draw([1, 2]), R3GANStudent(networks["G_ema"]).draw([1, 2]))  # type: ignore[arg-type]
    assert "G (r3gan.Generator 8x8x3" in inspect_file(path).sentence()
    found, made = (network.Model.MainLayers for network in (student.network, networks["G_ema"]))  # type: ignore[union-attr]
    assert [stage.DataType for stage in found] == [stage.DataType for stage in made]


def test_ours_are_plain_pickles_of_their_classes(stubs: dict[tuple[str, str], type], tmp_path: Path) -> None:
    """Python's own pickle makes modules of them, with the attributes that R3GAN's classes use."""
    networks = r3gan_networks(halves=1)
    path = save_gan(tmp_path / "n.pkl", r3gan_networks, halves=1)
    if ("training.networks", "Generator") not in {(cls.__module__, cls.__name__) for cls in stubs.values()}:
        with pytest.raises((ImportError, AttributeError)):
            pickle.load(io.BytesIO(path.read_bytes()))  # files are written under the newer names
        return
    loaded = pickle.load(io.BytesIO(path.read_bytes()))
    assert list(loaded) == ["G", "D", "G_ema", "training_set_kwargs", "provenance"]
    for name, network in networks.items():
        assert type(loaded[name]) is stubs["training.networks", type(network).__name__]
        state, other = loaded[name].state_dict(), network.state_dict()  # type: ignore[union-attr]
        assert list(state) == list(other)
        assert all(torch.equal(state[key], other[key]) for key in state)
    generator = loaded["G_ema"]
    assert (generator.z_dim, generator.c_dim, generator.img_resolution) == (8, 3, 8)
    assert [stage.DataType for stage in generator.Model.MainLayers] == [torch.float32, torch.bfloat16]
    assert not any(key.startswith("_init_") for module in generator.modules() for key in vars(module))
    layer = generator.Model.MainLayers[0].Layers[1].LinearLayer2.Layer
    assert layer(torch.zeros(1, 16, 4, 4)).shape == (1, 16, 4, 4)  # torch's own forward works


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_written_and_read_back(suffix: str, tmp_path: Path) -> None:
    networks = r3gan_networks(resolution=8, halves=1)
    for index in range(2):
        path = tmp_path / f"{index}.{suffix}"
        save_snapshot(path, networks, extras={"training_set_kwargs": {"a": 1}}, metadata={"n": 1.0})
        snapshot = load_snapshot(path)
        for name, network in networks.items():
            assert_same_weights(snapshot.networks[name], network)
        networks = snapshot.networks  # type: ignore[assignment]
    if suffix == "pkl":
        assert (tmp_path / "0.pkl").read_bytes() == path.read_bytes()


def test_the_filter_and_the_kernel_size_are_found(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = dict(
        NoiseDimension=4, WidthPerStage=[6, 4], CardinalityPerStage=[3, 2], BlocksPerStage=[1, 2], ExpansionFactor=3,
        FP16Stages=[], c_dim=0, img_resolution=8, KernelSize=5, ResamplingFilter=[1, 4, 1],
    )  # fmt: skip
    network = r3gan.Generator(**kwargs).eval()
    save_snapshot(tmp_path / "n.pkl", {"G": network, "D": None, "G_ema": network}, extras={}, metadata={})
    again = load_snapshot(tmp_path / "n.pkl").networks["G_ema"]
    assert_same_weights(again, network)
    assert again.init_kwargs == kwargs | {"img_channels": 3}  # type: ignore[union-attr]


def test_altered_files_are_refused(tmp_path: Path) -> None:
    networks = r3gan_networks()
    generator: Any = networks["G_ema"]
    del generator.Model._modules["AggregationLayer"]
    save_snapshot(tmp_path / "n.pkl", networks, extras={}, metadata={})
    with pytest.raises(RefusedFileError, match=r"a training\.networks\.Generator without the layers of R3GAN"):
        load_snapshot(tmp_path / "n.pkl")


def test_the_exported_graph_gives_its_images() -> None:
    student = R3GANStudent(r3gan_networks()["G_ema"])  # type: ignore[arg-type]
    z, labels = student.sample_latents(3, rng=SampleRandom(0, "z", 0, range(3))), torch.eye(3)
    torch.testing.assert_close(exported(student).module()(z, labels), student(z, labels))


def test_what_it_has_not_is_refused(tmp_path: Path) -> None:
    source = save_gan(tmp_path / "r.pkl", r3gan_networks)
    with pytest.raises(UserError, match="is a R3GAN, which has no w"):
        open_gan(str(source))
    with pytest.raises(UserError, match=r"--trunc=0\.5 is not for a R3GAN"):
        as_generator(load_snapshot(source)).with_options(trunc=0.5)


def test_refinement_and_its_preflight(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    arguments = ["--kind=di", f"--teacher={files['teacher']}", f"--gan-pkl={files['r3gan']}", "--device=cpu",
                 "--batch=6", "--kimg=0.012", "--metrics=none", "--lr=0.01", "--ema=0.001"]  # fmt: skip
    critic = ["--adv-weight=1", "--gamma=0.1", f"--data={files['data']}", "--cond=true"]
    folder = whole_run(tmp_path / "runs", *arguments, *critic)  # 6 images are no whole groups of StyleGAN2's
    snapshot = load_snapshot(max(folder.glob("network-snapshot-*.pkl")))
    before: Any = load_snapshot(files["r3gan"]).networks
    for name in ("G_ema", "D"):
        assert not torch.equal(_flat(snapshot.networks[name]), _flat(before[name]))
    assert isinstance(as_generator(snapshot), R3GANStudent)
    result = invoke(*arguments, "--freeze=b4", f"--outdir={tmp_path}")
    assert result.exit_code != 0
    assert "--freeze=b4: there is no such part; it has none" in result.output


def _flat(network: torch.nn.Module | None) -> torch.Tensor:
    assert network is not None
    return torch.cat([parameter.flatten() for parameter in network.parameters()])
