"""EDM's network of ADM's form, from weights alone, as DMD2 publishes its students."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from stylegan_di import load_denoiser, load_generator
from stylegan_di.commands.convert import main as convert
from stylegan_di.networks.edm import EDMPrecond
from stylegan_di.snapshots.inspection import inspect_file
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.torch_utils.persistence import RefusedFileError


def network_of(label_dim: int = 5) -> EDMPrecond:
    torch.manual_seed(0)
    network = EDMPrecond(
        16, 3, label_dim, model_channels=32, channel_mult=[1, 3], num_blocks=2, attn_resolutions=[8], dropout=0
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # many start at zero
    return network.eval().requires_grad_(False)


def weights(label_dim: int = 5) -> dict[str, Tensor]:
    return network_of(label_dim).state_dict()


@pytest.mark.parametrize("label_dim", [5, 0])
def test_the_arguments_follow_from_the_weights(label_dim: int, tmp_path: Path) -> None:
    torch.save(weights(label_dim), tmp_path / "pytorch_model.bin")
    teacher = load_denoiser(tmp_path / "pytorch_model.bin")
    assert (teacher.img_resolution, teacher.img_channels, teacher.label_dim) == (16, 3, label_dim)
    x, sigma = torch.randn([5, 3, 16, 16]), torch.tensor([0.1, 0.5, 2.0, 10.0, 80.0])
    labels = torch.eye(5) if label_dim else None
    assert teacher(x, sigma, labels).equal(network_of(label_dim)(x, sigma, labels))
    (warning,) = inspect_file(tmp_path / "pytorch_model.bin").warnings
    assert "teacher or a one-step student" in warning


def test_a_student_is_marked(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "dmd2.bin")
    result = CliRunner().invoke(convert, [str(tmp_path / "dmd2.bin"), str(tmp_path / "s.pkl"), "--sigma-init=80"])
    assert result.exit_code == 0, result.output
    student = load_generator(tmp_path / "s.pkl")
    assert isinstance(student, OneStepStudent)
    noise = torch.randn([5, 3, 16, 16])
    expected = network_of()(80 * noise, torch.full([5], 80.0), torch.eye(5))
    assert torch.allclose(student(noise, torch.eye(5)), expected, atol=1e-6)


@pytest.mark.parametrize("missing", ["model.enc.16x16_conv.weight", "model.out_norm.bias", "conv0"])
def test_other_weights_are_refused(missing: str, tmp_path: Path) -> None:
    torch.save({name: value for name, value in weights().items() if missing not in name}, tmp_path / "x.bin")
    with pytest.raises(RefusedFileError, match=r"x\.bin: found ('ema' without|contents that cannot be read)"):
        load_denoiser(tmp_path / "x.bin")
