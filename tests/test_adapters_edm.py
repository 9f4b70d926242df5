"""Low-rank adapters of EDM's own layers: W + B A, with W the teacher's own tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.utils import parametrize

from stylegan_di.networks.edm import PRECONDITIONERS
from stylegan_di.teachers.adapters import EDM_LAYERS
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.training.optimize import adam, trainable
from tests.test_resume import SHORT, invoke, killed_run, last_state, same_bits, whole_run
from tests.tiny import edm_network, save_files


def network_of(kind: str) -> EDMTeacher:
    """A SongUNet, ADM's DhariwalUNet with attention and resampling, or EDM2's."""
    if kind != "adm":
        return EDMTeacher(edm_network(precond="edm2" if kind == "edm2" else "edm"))
    torch.manual_seed(0)
    network = PRECONDITIONERS["edm"](
        model_type="DhariwalUNet", img_resolution=8, img_channels=1, label_dim=3, model_channels=8, channel_mult=[1, 2],
        num_blocks=1, attn_resolutions=[4], dropout=0,
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return EDMTeacher(network.eval().requires_grad_(False))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn([2, 1, 8, 8], generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.5, 4.0]), torch.eye(3)[:2]


@pytest.mark.parametrize("kind", ["song", "adm", "edm2"])
def test_it_starts_as_its_teacher_and_computes_with_w_plus_b_a(kind: str) -> None:
    teacher = network_of(kind)
    adapted = teacher.adapted_copy(3)
    expected = teacher(*inputs())
    assert torch.equal(adapted(*inputs()), expected)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    merged = teacher.trainable_copy()
    assert isinstance(merged, EDMTeacher)
    layers = [name for name, module in merged.network.named_modules()
              if isinstance(module, EDM_LAYERS) and module.weight is not None]  # fmt: skip
    for name in layers:
        own = f"denoiser.network.{name}.parametrizations.weight.0"
        weight = merged.network.get_parameter(f"{name}.weight")
        a, b = (adapted.get_parameter(f"{own}.lora_{part}") for part in "AB")
        assert a.shape[0] == b.shape[1] == 3
        weight.data += (b @ a).view_as(weight)
    assert 2 * len(layers) == len(list(adapted.parameters()))
    torch.testing.assert_close(adapted(*inputs()), merged(*inputs()))
    assert torch.equal(teacher(*inputs()), expected)
    assert not any(parametrize.is_parametrized(module) for module in teacher.modules())


def test_weights_are_shared_and_only_adapters_train() -> None:
    teacher = network_of("song")
    adapted = teacher.adapted_copy(4)
    before = weights_hash(teacher)
    theirs, own = ({p.data_ptr() for p in network.parameters()} for network in (teacher, adapted))
    held = {value.data_ptr() for value in torch.nn.Module.state_dict(adapted).values() if value.numel()}
    assert not theirs & own
    assert theirs < held
    adapted.eval().requires_grad_(False)
    optimizer = adam(adapted, 1e-2, beta1=0.0, beta2=0.99)
    losses = []
    for _ in range(5):
        with trainable(adapted, train_mode=False):
            loss = (adapted(*inputs()) - 1).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert weights_hash(teacher) == before
    assert set(adapted.state_dict()) == {name for name, _ in adapted.named_parameters()}


@pytest.mark.usefixtures("small_grids")
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    given = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", *SHORT, "--kimg=0.012",
             "--tick=0.004", "--metrics=none", "--fake-rank=2"]  # fmt: skip
    whole, killed = whole_run(tmp_path / "whole", *given), killed_run(tmp_path / "killed", 2, *given)
    assert invoke(f"--resume={killed}").exit_code == 0
    tensors = last_state(whole).tensors
    assert [name for name, value in last_state(killed).tensors.items() if not same_bits(value, tensors[name])] == []
    scores = [name for name in tensors if name.startswith("fake_score.")]
    assert scores
    assert all(".lora_" in name for name in scores)
    moved = [name for name in scores if name.endswith("lora_B") and tensors[name].abs().max() > 0]
    assert len(moved) > len(scores) // 3  # not those of layers behind a zero, such as an untrained last one


def test_a_teacher_that_moves_lends_no_weights(tmp_path: Path) -> None:
    files = save_files(tmp_path)
    result = invoke("--kind=di", f"--gan-pkl={files['gan']}", "--teacher=online", f"--data={files['data']}",
                    "--cond=true", "--fake-rank=2", "--metrics=none", "--dry-run")  # fmt: skip
    assert result.exit_code == 2
    assert "--fake-rank=2 shares the teacher's weights, which --teacher=online moves" in " ".join(result.output.split())
