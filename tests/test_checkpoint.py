"""Network files give the networks NVlabs' code gives, and come back bit for bit; files that do not fit are refused."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import stylegan_di
from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.heun import heun_sampler
from stylegan_di.snapshots import portable
from stylegan_di.snapshots.checkpoint import (
    Snapshot,
    as_denoiser,
    as_generator,
    load_denoiser,
    load_generator,
    load_snapshot,
    save_snapshot,
)
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import W_AVG_SAMPLES, StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.persistence import PersistentObject, RefusedFileError, read_pickle, write_pickle
from tests.golden_edm import NETWORKS, load_network

GOLDEN = Path(__file__).parent / "golden" / "pickles"
FORMATS = ["pkl", "safetensors"]

UNREADABLE = "contents that cannot be read"


@functools.cache
def golden(name: str) -> Snapshot:
    """The snapshot of a golden file; not to be altered."""
    return load_snapshot(GOLDEN / f"{name}.pkl")


def expected(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.expected.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def assert_near(value: Tensor, reference: Tensor, relative: float) -> None:
    torch.testing.assert_close(value, reference, rtol=0, atol=relative * float(reference.abs().max()))


def assert_same_weights(first: torch.nn.Module | None, second: torch.nn.Module | None) -> None:
    assert first is not None
    assert second is not None
    assert type(first) is type(second)
    state, other = first.state_dict(), second.state_dict()
    assert list(state) == list(other)
    for key in state:
        torch.testing.assert_close(state[key], other[key], rtol=0, atol=0)


# NVlabs' files.


@pytest.mark.parametrize("name", ["sg2-uncond", "sg2-cond"])
def test_stylegan2_networks_of_a_golden_file(name: str) -> None:
    want, snapshot = expected(name), golden(name)
    z, c = want["z"], want.get("c")
    for which in ("G", "G_ema"):
        network: Any = snapshot.networks[which]
        assert_near(network.mapping(z, c), want[f"{which}/ws"], 1e-5)
        fp32 = {"noise_mode": "const", "force_fp32": True}
        assert_near(network(z, c, **fp32), want[f"{which}/img_const_fp32"], 1e-5)
        assert_near(network(z, c, truncation_psi=0.7, **fp32), want[f"{which}/img_const_psi0.7_fp32"], 1e-5)
        cut = network(z, c, truncation_psi=0.5, truncation_cutoff=3, noise_mode="none", force_fp32=True)
        assert_near(cut, want[f"{which}/img_none_cut3_fp32"], 1e-5)
        assert_near(network(z, c, noise_mode="const"), want[f"{which}/img_const_default_precision"], 1e-2)
    discriminator: Any = snapshot.networks["D"]
    images = want["G_ema/img_const_fp32"]
    assert_near(discriminator(images, c, force_fp32=True), want["D/logits_fp32"], 1e-5)
    assert_near(discriminator(images, c), want["D/logits_default_precision"], 1e-2)


@pytest.mark.parametrize(("name", "label"), [("sg2-uncond", None), ("sg2-cond", 2)])
def test_seed_5_gives_nvlabs_image(name: str, label: int | None) -> None:
    want = expected(name)
    (key,) = (key for key in want if key.startswith("generate_seed5"))
    generator = as_generator(golden(name))
    z = torch.from_numpy(np.random.RandomState(5).randn(1, generator.network.z_dim))
    c = None if label is None else torch.eye(10)[[label]]
    image = generator.network(z, c, truncation_psi=0.8, noise_mode="const")
    pixels = (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert int((pixels.int() - want[key].int()).abs().max()) <= (1 if label is None else 0)  # float16 blocks may round


@pytest.mark.parametrize("name", ["edm-uncond", "edm-cond"])
def test_edm_network_of_a_golden_file(name: str) -> None:
    want, teacher = expected(name), as_denoiser(golden(name))
    x, labels = want["x"], want.get("labels")
    for sigma in (0.002, 0.3, 2.0, 80.0):
        noisy = x * max(sigma, 0.5)
        assert_near(teacher(noisy, torch.tensor(sigma), labels), want[f"D_sigma{sigma:g}"], 2e-5)
    augmented = teacher.network(x, torch.tensor([1.0, 0.1, 5.0]), labels, augment_labels=want["augment_labels"])
    assert_near(augmented, want["D_aug_sigma1"], 2e-5)
    assert_near(heun_sampler(teacher, x, labels), want["sample18"], 2e-5)


def test_load_generator_and_load_denoiser_are_ready_to_use() -> None:
    generator = stylegan_di.load_generator(GOLDEN / "sg2-cond.pkl")
    denoiser = stylegan_di.load_denoiser(str(GOLDEN / "edm-cond.pkl"))
    assert isinstance(generator, StyleGAN2Student)
    assert isinstance(denoiser, EDMTeacher)
    for module in (generator, denoiser):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert (module.img_resolution, module.img_channels, module.label_dim) == (16, 3, 10)
    assert_same_weights(generator.network, golden("sg2-cond").networks["G_ema"])


def test_loading_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    load_snapshot(GOLDEN / "edm-uncond.pkl")
    torch.testing.assert_close(torch.rand(3), first, rtol=0, atol=0)


def test_what_is_beside_the_networks() -> None:
    content = json.loads((GOLDEN / "sg2-cond.expected.json").read_text())
    snapshot = golden("sg2-cond")
    assert list(snapshot.networks) == ["G", "D", "G_ema", "augment_pipe"]
    assert snapshot.extras == {"training_set_kwargs": content["training_set_kwargs"]}
    assert snapshot.metadata == {}
    pipe: Any = snapshot.networks["augment_pipe"]
    assert float(pipe.p) == content["augment_pipe"]["p"]
    assert pipe.init_kwargs == content["augment_pipe"]["init_kwargs"]
    assert golden("sg2-uncond").networks["augment_pipe"] is None
    assert list(golden("edm-cond").extras) == ["dataset_kwargs"]


# Ours.


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["sg2-uncond", "sg2-cond", "edm-cond"])
def test_written_and_read_back_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    original = golden(name)
    path = tmp_path / f"snapshot.{suffix}"
    metadata = {"command": "train.py --kind=di", "kimg": 12.5, "metric/fd": 3.0}
    save_snapshot(path, original.networks, extras=original.extras, metadata=metadata)
    read = load_snapshot(path)
    assert (read.extras, read.metadata) == (original.extras, metadata)
    for key, network in original.networks.items():
        if network is None:
            assert read.networks[key] is None
        else:
            assert_same_weights(read.networks[key], network)
            assert read.networks[key].init_kwargs == network.init_kwargs  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    again = tmp_path / f"again.{suffix}"
    save_snapshot(again, read.networks, extras=read.extras, metadata=metadata)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_images_are_the_same_after_a_round_trip(suffix: str, tmp_path: Path) -> None:
    generator = as_generator(golden("sg2-cond"))
    path = tmp_path / f"g.{suffix}"
    save_snapshot(path, {"G": None, "D": None, "G_ema": generator.network}, extras={}, metadata={})
    read = load_generator(path)
    z, labels = generator.sample_latents(3, rng=SampleRandom(0, "z", 0, range(3))), torch.eye(10)[:3]
    for rng in (lambda: None, lambda: SampleRandom(0, "noise", 0, range(3))):
        images = generator(z, labels, rng=rng())
        assert images.dtype == torch.float32
        torch.testing.assert_close(read(z, labels, rng=rng()), images, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_step_student(suffix: str, tmp_path: Path) -> None:
    network = as_denoiser(golden("edm-cond")).network
    path = tmp_path / f"s.{suffix}"
    save_snapshot(path, {"ema": network}, extras={"dataset_kwargs": {}, "sigma_init": 2.5}, metadata={})
    student = load_generator(path)
    assert isinstance(student, OneStepStudent)
    z, labels = student.sample_latents(2, rng=SampleRandom(0, "z", 0, range(2))), torch.eye(10)[:2]
    assert z.shape == (2, 3, 16, 16)
    torch.testing.assert_close(student(z, labels), network(2.5 * z, torch.tensor(2.5), labels), rtol=0, atol=0)
    with pytest.raises(RefusedFileError, match="a one-step student"):
        load_denoiser(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_preconditioner_comes_back_as_a_teacher(name: str, suffix: str, tmp_path: Path) -> None:
    network, arrays, _ = load_network(name, torch.float32)
    path = tmp_path / f"n.{suffix}"
    save_snapshot(path, {"ema": network}, extras={"dataset_kwargs": {}}, metadata={})
    teacher = load_denoiser(path)
    assert_same_weights(teacher.network, network)
    assert (teacher.sigma_min, teacher.sigma_max) == (network.sigma_min, network.sigma_max)
    with torch.no_grad():
        denoised = teacher(arrays["x"], arrays["sigma_vec"], arrays.get("labels"))
    assert_near(denoised, arrays["out32/D_sigmavec"], 1e-4)


def test_channels_last_weights_survive(tmp_path: Path) -> None:
    network = copy.deepcopy(as_denoiser(golden("edm-uncond")).network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for suffix in FORMATS:
        save_snapshot(tmp_path / f"n.{suffix}", {"ema": network}, extras={}, metadata={})
        assert_same_weights(load_denoiser(tmp_path / f"n.{suffix}").network, network)


def test_pickles_have_nvlabs_order_and_source(tmp_path: Path) -> None:
    cond = golden("sg2-cond")
    save_snapshot(tmp_path / "g.pkl", dict(reversed(cond.networks.items())), extras=cond.extras, metadata={})
    assert list(_top_level(tmp_path / "g.pkl")) == [
        "training_set_kwargs", "G", "D", "G_ema", "augment_pipe", "provenance",
    ]  # fmt: skip
    network = as_denoiser(golden("edm-cond")).network
    extras = {"sigma_init": 2.5, "dataset_kwargs": {"path": "x"}}
    save_snapshot(tmp_path / "e.pkl", {"ema": network}, extras=extras, metadata={})
    assert list(_top_level(tmp_path / "e.pkl")) == [
        "ema", "loss_fn", "augment_pipe", "dataset_kwargs", "sigma_init", "provenance",
    ]  # fmt: skip
    assert _sources(tmp_path / "g.pkl") == {inspect.getsource(portable.stylegan2)}
    assert _sources(tmp_path / "e.pkl") == {inspect.getsource(portable.edm)}
    save_snapshot(tmp_path / "g.pkl", cond.networks, extras=cond.extras, metadata={}, target="stylegan2-ada")
    assert _sources(tmp_path / "g.pkl") == {"from training.networks import *\n", "from training.augment import *\n"}


def _sources(path: Path) -> set[str]:
    strings = {a for op, a, _ in pickletools.genops(path.read_bytes()) if "UNICODE" in op.name}
    return {text for text in strings if "import" in text}


def _top_level(path: Path) -> dict[str, Any]:
    return read_pickle(path.read_bytes(), str(path))


@pytest.mark.parametrize("kind", ["sg2", "edm"])
def test_layers_carry_the_attributes_nvlabs_classes_store(kind: str, tmp_path: Path) -> None:
    """Every attribute that NVlabs' class keeps, and no other, for each class that occurs in the file."""
    table = json.loads((GOLDEN.parent / f"format/state_attrs_{kind}.json").read_text())
    attributes = table["classes"] if kind == "sg2" else table["modules"]
    seen: dict[str, set[str]] = {}
    for name in ("cond", "uncond"):
        snapshot = golden(f"{kind}-{name}")
        save_snapshot(tmp_path / "n.pkl", snapshot.networks, extras=snapshot.extras, metadata={})
        ours = _attributes(_top_level(tmp_path / "n.pkl"))
        assert ours == _attributes(_top_level(GOLDEN / f"{kind}-{name}.pkl"))
        for class_name, keys in ours:
            seen.setdefault(class_name, set()).update(keys)
    assert len(seen) > 5
    for class_name, keys in seen.items():
        assert keys <= set(attributes[class_name])


def _attributes(content: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(class, its own attributes in order, without tensors and modules) of all modules, depth first."""
    found = []

    def visit(module: PersistentObject) -> None:
        state = module.state
        if "_modules" not in state:
            return
        if module.module_src_sha256:
            found.append((module.class_name, list(state)[list(state).index("_modules") + 1 :]))
        for child in state["_modules"].values():
            if child is not None:
                visit(child)

    for entry in content.values():
        if isinstance(entry, PersistentObject):
            visit(entry)
    return found


# Refusals.


def small_generator(**changes: Any) -> Generator:
    arguments = {"z_dim": 4, "c_dim": 0, "w_dim": 4, "img_resolution": 8, "img_channels": 1}
    nested = {"mapping_kwargs": {"num_layers": 1}, "synthesis_kwargs": {"channel_base": 32, "channel_max": 4}}
    return Generator(**(arguments | nested | changes))


def altered(network: torch.nn.Module, change: Callable[[dict[str, Any]], None]) -> torch.nn.Module:
    """A copy whose remembered keyword arguments are changed behind its back."""
    network = copy.deepcopy(network)
    change(network.__dict__["_init_kwargs"])
    return network


def test_a_teacher_as_the_gan_and_the_reverse() -> None:
    with pytest.raises(RefusedFileError, match=r"edm-cond\.pkl: found a diffusion teacher.*--teacher"):
        load_generator(GOLDEN / "edm-cond.pkl")
    with pytest.raises(RefusedFileError, match=r"sg2-cond\.pkl: found no diffusion model.*G_ema.*--gan-pkl"):
        load_denoiser(GOLDEN / "sg2-cond.pkl")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda k: k.update(img_resolution=16), "weights missing"),
        (lambda k: k.update(img_resolution=4), "too many"),
        (lambda k: k.update(img_resolution=2**40), "img_resolution=1099511627776; accepted is int, a number from 1"),
        (lambda k: k.update(img_resolution=2**20), "does not take"),
        (lambda k: k.update(img_resolution="big"), "does not take"),
        (lambda k: k.update(z_dim=5), r"mapping\.fc0\.weight as \[4, 4\]"),
        (lambda k: k.update(surprise=1), "does not take"),
        (lambda k: k.pop("z_dim"), "does not take"),
        (lambda k: k["mapping_kwargs"].update(num_layers=10**6), "mapping_kwargs.num_layers=1000000; accepted is"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=[1] * 1000), "accepted is up to 64 of"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=[1] * 64), r"resample_filter as \[4, 4\]"),
        (lambda k: k.update(mapping_kwargs="x"), "does not take"),
    ],
)
def test_arguments_that_do_not_fit(change: Any, found: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"g.{suffix}"
    save_snapshot(path, {"G_ema": altered(small_generator(), change)}, extras={}, metadata={})
    with pytest.raises(RefusedFileError, match=found):
        load_generator(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, suffix: str, tmp_path: Path) -> None:
    network = small_generator()
    with torch.no_grad():
        network.mapping.fc0.bias[1] = value
    save_snapshot(tmp_path / f"g.{suffix}", {"G_ema": network}, extras={}, metadata={})
    match = r"NaN or infinite numbers in G_ema\.mapping\.fc0\.bias.*earlier snapshot"
    with pytest.raises(RefusedFileError, match=match):
        load_generator(tmp_path / f"g.{suffix}")


@pytest.mark.parametrize("name", ["sg2-cond", "sg3-t"])
def test_a_w_avg_of_nan_is_estimated_and_written_clean(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NVlabs' training on today's PyTorch leaves NaN in it; truncation, which needs it, then works all the same."""
    networks: Any = copy.deepcopy(golden(name).networks)
    networks["G_ema"].mapping.w_avg.fill_(float("nan"))
    save_snapshot(tmp_path / "nan.pkl", networks, extras={}, metadata={})
    network: Any = load_generator(tmp_path / "nan.pkl").network
    assert "nan.pkl: G_ema.mapping.w_avg holds NaN or infinite numbers" in capsys.readouterr().err
    z = torch.randn([20_000, network.z_dim], generator=torch.Generator().manual_seed(1))
    c = torch.eye(network.c_dim).repeat(20_000 // network.c_dim, 1) if network.c_dim else None
    w = network.mapping(z, c)[:, 0]
    error = w.std(0) * (1 / 20_000 + 1 / W_AVG_SAMPLES) ** 0.5
    assert float(((w.mean(0) - network.mapping.w_avg) / error).abs().max()) < 5
    save_snapshot(tmp_path / "clean.pkl", {"G_ema": network}, extras={}, metadata={})
    assert_same_weights(load_generator(tmp_path / "clean.pkl").network, network)
    assert "NaN" not in capsys.readouterr().err


def test_weights_of_another_type(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "g.pkl", {"G_ema": small_generator().double()}, extras={}, metadata={})
    with pytest.raises(RefusedFileError, match=r"torch\.float64.*torch\.float32"):
        load_generator(tmp_path / "g.pkl")


def test_missing_and_extra_weights(tmp_path: Path) -> None:
    network = small_generator()
    del network.mapping._buffers["w_avg"]
    network.mapping.register_buffer("surplus", torch.zeros(1))
    save_snapshot(tmp_path / "g.pkl", {"G_ema": network}, extras={}, metadata={})
    with pytest.raises(RefusedFileError, match=r"without mapping\.w_avg and with mapping\.surplus \(1 .*, 1 too"):
        load_generator(tmp_path / "g.pkl")


def test_networks_in_the_wrong_place(tmp_path: Path) -> None:
    path = tmp_path / "g.pkl"
    path.write_bytes(write_pickle({"G_ema": Discriminator(c_dim=0, img_resolution=8, img_channels=1, channel_max=4)}))
    with pytest.raises(RefusedFileError, match=r"a 'Discriminator' as 'G_ema'.*Known for 'G_ema' are Generator,"):
        load_generator(path)
    path.write_bytes(write_pickle({"ema": small_generator().mapping}))
    with pytest.raises(RefusedFileError, match=r"a 'MappingNetwork' as 'ema'.*Known for 'ema' are EDMPrecond"):
        load_denoiser(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "it is empty"),
        ({"mu": [1.0], "sigma": [2.0]}, "its entries are mu, sigma"),
        ([1], "a list at the top"),
        ({"G_ema": None}, "no generator"),
        ({"ema": 3}, "no generator"),
    ],
)
def test_files_without_a_generator(content: Any, found: str, tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(write_pickle(content))
    with pytest.raises(RefusedFileError, match=found):
        load_generator(tmp_path / "n.pkl")


@pytest.mark.parametrize("sigma_init", [0.0, -1.0, float("nan"), float("inf"), 10**30, "2.5", [2.5]])
def test_a_sigma_init_that_is_no_noise_level(sigma_init: Any, tmp_path: Path) -> None:
    network = as_denoiser(golden("edm-uncond")).network
    save_snapshot(tmp_path / "s.pkl", {"ema": network}, extras={"sigma_init": sigma_init}, metadata={})
    with pytest.raises(RefusedFileError, match="sigma_init"):
        load_generator(tmp_path / "s.pkl")


def _safetensors(**header: str) -> bytes:
    return safetensors.torch.save({"G_ema.x": torch.zeros(1)}, header)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", UNREADABLE),
        (b"\xff" * 8 + b"{}", UNREADABLE),
        (b"\x02" + bytes(7) + b"{]", UNREADABLE),
        (_safetensors(), "format_version None"),
        (_safetensors(format_version="2"), "format_version 2"),
        (_safetensors(format_version="1"), UNREADABLE),
        (_safetensors(format_version="1", networks="[", extras="{}", provenance="{}"), UNREADABLE),
        (_safetensors(format_version="1", networks="[1]", extras="{}", provenance="{}"), UNREADABLE),
        (_safetensors(format_version="1", networks='{"G": {}}', extras="{}", provenance="{}"), UNREADABLE),
        (
            _safetensors(
                format_version="1",
                networks='{"G": {"class_name": [], "init_args": [], "init_kwargs": {}}}',
                extras="{}",
                provenance="{}",
            ),
            UNREADABLE,
        ),
        (_safetensors(format_version="1", networks="[" * 99999, extras="{}", provenance="{}"), UNREADABLE),
    ],
)
def test_bad_safetensors(data: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "n.safetensors").write_bytes(data)
    with pytest.raises(RefusedFileError, match=found):
        load_generator(tmp_path / "n.safetensors")


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_snapshot(path, {"G_ema": small_generator()}, extras={}, metadata={})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RefusedFileError, match=UNREADABLE):
        load_generator(path)


def test_snapshots_that_cannot_be_written(tmp_path: Path) -> None:
    network = small_generator()
    with pytest.raises(UserError, match=r"\.pkl or \.safetensors, not '\.pt'"):
        save_snapshot(tmp_path / "g.pt", {"G_ema": network}, extras={}, metadata={})
    with pytest.raises(TypeError, match="G_ema: a StyleGAN2Student"):
        save_snapshot(tmp_path / "g.pkl", {"G_ema": StyleGAN2Student(network)}, extras={}, metadata={})
    (tmp_path / "g.pkl").write_bytes(b"before")
    with pytest.raises(TypeError, match="object"):
        save_snapshot(tmp_path / "g.pkl", {"G_ema": network}, extras={"x": object()}, metadata={})
    assert (tmp_path / "g.pkl").read_bytes() == b"before"


# Students.


def test_students_check_labels_and_streams() -> None:
    conditional, plain = as_generator(golden("sg2-cond")), as_generator(golden("sg2-uncond"))
    z = torch.zeros(2, 32)
    with pytest.raises(UserError, match="conditional on 10 classes"):
        conditional(z)
    with pytest.raises(UserError, match=r"labels of shape \[2, 9\]; this generator wants \[2, 10\]"):
        conditional(z, torch.zeros(2, 9))
    assert plain(z).shape == (2, 3, 16, 16)
    for student in (plain, OneStepStudent(as_denoiser(golden("edm-uncond")).network, 2.5)):
        with pytest.raises(ValueError, match="2 latents from 3 random streams"):
            student.sample_latents(2, rng=SampleRandom(0, "z", 0, range(3)))


def test_student_noise_depends_on_the_streams_only() -> None:
    generator = as_generator(golden("sg2-cond"))
    z, labels = torch.ones(3, 32), torch.eye(10)[:3]
    together = generator(z, labels, rng=SampleRandom(0, "noise", 0, range(3)))
    alone = generator(z[1:2], labels[1:2], rng=SampleRandom(0, "noise", 0, [1]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, generator(z, labels), atol=1e-3)
