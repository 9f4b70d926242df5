"""ADM's files: read as data, converted, and D(x; sigma) as the paper's description gives it."""

from __future__ import annotations

import io
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di import load_denoiser, load_generator
from stylegan_di.diffusion import linear_levels
from stylegan_di.networks.edm import DDPMPrecond, iDDPMPrecond
from stylegan_di.snapshots import adm
from stylegan_di.snapshots.checkpoint import load_snapshot, save_snapshot
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.torch_utils.persistence import RefusedFileError
from stylegan_di.torch_utils.torch_archive import read_state_dict
from tests import reference_adm

CLASSES = 3


def weights_of(layout: adm.Layout, label_dim: int = CLASSES) -> dict[str, Tensor]:
    return reference_adm.random_weights(layout.channel_mult, 32, 1, (32, 16, 8), layout.resolution, label_dim)


def saved(path: Path, weights: dict[str, Any]) -> Path:
    ordered = OrderedDict(weights)
    ordered._metadata = OrderedDict(version=1)  # as Module.state_dict has it
    torch.save(ordered, path)
    return path


@pytest.mark.parametrize("layout", adm.LAYOUTS, ids=lambda layout: str(layout.resolution))
def test_d_is_the_papers(layout: adm.Layout, tmp_path: Path) -> None:
    weights = weights_of(layout)
    teacher = load_denoiser(saved(tmp_path / "network.pt", weights)).double()
    network = teacher.network
    assert type(network) is (iDDPMPrecond if layout.cosine else DDPMPrecond)
    assert (teacher.img_resolution, teacher.img_channels, teacher.label_dim) == (layout.resolution, 3, CLASSES)
    exact = {name: value.double() for name, value in weights.items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([2, 3, 64, 64], generator=generator, dtype=torch.float64)  # smaller than 512: it is convolutional
    labels = torch.tensor([2, 0])
    levels = network.u.double()
    index = torch.tensor([300, 900])
    sigma = levels[index]
    scaled = x / (sigma.square() + 1).sqrt().view(2, 1, 1, 1)
    raw = reference_adm.unet(
        exact, scaled, 999 - index.double(), labels, len(layout.channel_mult), layout.num_heads, layout.split_first
    )
    expected = x - sigma.view(2, 1, 1, 1) * raw[:, :3]
    found = teacher(x, sigma, torch.eye(CLASSES, dtype=torch.float64)[labels])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_the_noise_levels_are_those_of_the_schedules() -> None:
    a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    levels = linear_levels(1000)
    assert levels[-1] == 0
    torch.testing.assert_close(levels[:-1].flip(0).double(), ((1 - a) / a).sqrt(), rtol=1e-6, atol=0)
    network = DDPMPrecond(8, 1, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    assert (network.sigma_min, network.sigma_max) == (float(levels[-2]), float(levels[0]))
    assert network.coefficients(levels[[0, 999]]).c_noise.tolist() == [999, 0]
    assert torch.equal(network.round_sigma(levels[500] * 1.001), levels[500])


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_a_converted_network_comes_back_from_a_snapshot(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "network.pt", weights_of(adm.LAYOUTS[1], label_dim=0))
    teacher = load_denoiser(path)
    assert teacher.label_dim == 0
    save_snapshot(tmp_path / f"again.{suffix}", teacher.entries(), extras={}, metadata={})
    again = load_denoiser(tmp_path / f"again.{suffix}")
    x = torch.randn([1, 3, 32, 32], generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher(x, torch.ones(1)), again(x, torch.ones(1)))
    assert "written by guided-diffusion" in inspect_file(path).sentence()


def test_a_network_of_64_pixels_is_distilled(tmp_path: Path) -> None:
    teacher = load_denoiser(saved(tmp_path / "network.pt", weights_of(adm.LAYOUTS[0])))
    student = OneStepStudent.of_teacher(teacher, 2.5)
    save_snapshot(tmp_path / "student.pkl", student.entries(), extras=student.extras({}), metadata={})
    z = torch.randn([1, 3, 64, 64], generator=torch.Generator().manual_seed(0))
    images = load_generator(tmp_path / "student.pkl")(z, torch.eye(CLASSES)[:1])
    torch.testing.assert_close(images, teacher(2.5 * z, torch.tensor([2.5]), torch.eye(CLASSES)[:1]))


# What is read, and refused.


def test_a_state_dict_is_read_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn([6, 4], generator=generator)
    weights = {
        "plain": base, "transposed": base.t(), "part": base[2:4], "parameter": torch.nn.Parameter(base[:1]),
        "half": base.half(), "whole": torch.arange(5), "empty": torch.zeros(0), "scalar": torch.tensor(2.5),
    }  # fmt: skip
    found = read_state_dict(saved(tmp_path / "w.pt", weights).read_bytes(), "w.pt")
    assert list(found) == list(weights)
    for name, value in weights.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.detach())


def test_mutants_of_an_archive_are_read_or_refused() -> None:
    original, rng = archive({}), random.Random(0)
    outcomes = set()
    for _ in range(2000):
        mutant = bytearray(original)
        for _ in range(rng.randint(1, 8)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        try:
            read_state_dict(bytes(mutant), "w.pt")
            outcomes.add("read")
        except RefusedFileError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def archive(changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A state dict's archive with some of its files replaced, or left out for None."""
    original, changed = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, original)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(changed, "w", compression) as target:
        for name in source.namelist():
            content = changes.get(name.partition("/")[2], source.read(name))
            if content is not None:
                target.writestr(name, content)
    return changed.getvalue()


#: {"w": _rebuild_tensor_v2(("storage", OrderedDict, "0", "cpu", 4), 0, (4,), (1,), False, None)} as opcodes.
OF_NO_STORAGE = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storageccollections\nOrderedDict\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtRs."
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no archive of torch.save"),
        (archive({})[:-30], "no archive of torch.save"),
        (archive({"data/0": None}), "an archive without 'data/0'"),
        (archive({"data/0": b"1234"}), "a storage of 4 numbers in 4 bytes"),
        (archive({"data.pkl": None}), "without a torch.save's data.pkl"),
        (archive({"data.pkl": b"\x80\x02N."}), "no state dict at the top"),
        (archive({"data.pkl": b"\x80\x02}q\x00X\x01\x00\x00\x00wK\x01s."}), "of other things than named tensors"),
        (archive({"data.pkl": b"\x80\x02cos\nsystem\n."}), "the global 'os' 'system'"),
        (archive({"data.pkl": OF_NO_STORAGE}), "a torch stream without a plain storage"),
        (archive({"byteorder": b"big"}), "big-endian"),
        (archive({}, zipfile.ZIP_DEFLATED), "a compressed file in an archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_and_hostile_archives_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(RefusedFileError, match=message):
        read_state_dict(data, "w.pt")


def test_no_code_of_an_archive_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(RefusedFileError, match="which no network needs and which could run code"):
        load_snapshot(tmp_path / "w.pt")
    assert capsys.readouterr().out == ""


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    weights = weights_of(adm.LAYOUTS[0]) | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": torch.zeros(1)}, "another network than a denoiser of guided-diffusion"),
        (changed(input_blocks__0__0__weight=torch.zeros(32, 6, 3, 3)), "6 input channels, such as an upsampler"),
        (changed(middle_block__1__qkv__weight=torch.zeros(7, 128, 1)), "weights of other shapes"),
        (changed(time_embed__0__weight=torch.zeros(())), "weights of other shapes"),
        (changed(time_embed__0__weight=torch.zeros(128, 30)), "an encoder of 8 layers"),
        (changed(foreign=torch.zeros(1)), "weights that guided-diffusion's have not: foreign"),
        (changed(middle_block__2__in_layers__2__bias=None), "'ema' without model.dec.8x8_in1.conv0.bias"),
        (
            changed(out__0__weight=torch.full([32], float("nan"))),
            "NaN or infinite numbers in ema.model.out_norm.weight",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_networks_are_refused(weights: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedFileError, match=message):
        load_denoiser(saved(tmp_path / "w.pt", weights))
