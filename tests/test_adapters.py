"""Low-rank adapters as a fake score: it starts as its teacher and shares its weights; only adapters move."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import train
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import Noised
from stylegan_di.snapshots.pipelines import TeacherOptions
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.teachers.discrete import AdaptedRowwise, DiscreteTeacher
from stylegan_di.torch_utils.hashing import weights_hash
from stylegan_di.training.optimize import adam, trainable
from tests import tiny_pipelines as tiny
from tests.gaussians import GaussianDenoiser
from tests.test_resume import killed_run, last_state, same_bits
from tests.tiny import save_files, save_gan
from tools.dev import adapters_memory

pytestmark = pytest.mark.usefixtures("small_grids")

pytest.importorskip("peft", reason="adapters are peft's, which is not installed")

SHORT = ["--device=cpu", "--batch=4", "--kimg=0.008", "--tick=0.004", "--snap=1", "--metrics=none"]


def opened(kind: str, folder: Path) -> Denoiser:
    if kind == "texts":
        return open_teacher(str(tiny.save_text_to_image(folder)), TeacherOptions("a", guidance=3.0))
    return open_teacher(str(tiny.save_dit(folder) if kind == "transformer" else tiny.save_unet(folder)))


def inputs(teacher: Denoiser) -> tuple[torch.Tensor, torch.Tensor]:
    shape = [2, teacher.img_channels, teacher.img_resolution, teacher.img_resolution]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 4.0])


@pytest.mark.parametrize("kind", ["pixels", "texts", "transformer"])
def test_it_starts_as_its_teacher_to_the_bit(kind: str, tmp_path: Path) -> None:
    teacher = opened(kind, tmp_path / "p")
    adapted = teacher.adapted_copy(4)
    x, sigma = inputs(teacher)
    expected = teacher.trainable_copy()(x, sigma)
    assert torch.equal(adapted(x, sigma), expected)
    assert adapted.space is teacher.space
    for parameter in adapted.parameters():
        parameter.data.add_(0.05)
    assert not torch.allclose(adapted(x, sigma), expected)
    assert torch.equal(teacher.trainable_copy()(x, sigma), expected)  # the teacher has no adapters


def test_an_adapted_layer_is_w_plus_b_a(tmp_path: Path) -> None:
    """At every layer: merging each B A into the teacher's weight gives a network with the same outputs."""
    teacher = opened("pixels", tmp_path / "p")
    adapted = teacher.adapted_copy(3)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    merged = teacher.trainable_copy()
    weights = adapted.state_dict()
    layers = 0
    for name, module in merged.network.named_modules():
        a = weights.get(f"denoiser.network.{name}.lora_A.default.weight")
        if a is not None:
            b = weights[f"denoiser.network.{name}.lora_B.default.weight"]
            assert a.shape[0] == b.shape[1] == 3
            module.weight.data += (b.flatten(1) @ a.flatten(1)).view_as(module.weight)
            layers += 1
    assert layers == sum(isinstance(m, torch.nn.Linear | torch.nn.Conv2d) for m in merged.modules())
    x, sigma = inputs(teacher)
    torch.testing.assert_close(adapted(x, sigma), merged(x, sigma), rtol=1e-4, atol=1e-4)


def test_weights_are_shared_and_only_adapters_train(tmp_path: Path) -> None:
    teacher = opened("pixels", tmp_path / "p")
    adapted = teacher.adapted_copy(4)
    before = weights_hash(teacher)
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    own = list(adapted.parameters())
    assert not theirs & {parameter.data_ptr() for parameter in own}
    held = {value.data_ptr() for value in torch.nn.Module.state_dict(adapted).values()}
    assert theirs < held
    assert len(held) == len(theirs) + len(own)
    adapted.eval().requires_grad_(False)
    optimizer = adam(adapted, 1e-2, beta1=0.0, beta2=0.99)
    x, sigma = inputs(teacher)
    losses = []
    for _ in range(5):
        with trainable(adapted, train_mode=False):
            assert [p.requires_grad for p in teacher.parameters()] == [False] * len(theirs)
            loss = (adapted(x, sigma) - 1).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert weights_hash(teacher) == before
    assert sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) == sum(
        parameter.numel() for parameter in own
    )


def test_the_state_holds_adapters_alone(tmp_path: Path) -> None:
    teacher = opened("pixels", tmp_path / "p")
    first, second = teacher.adapted_copy(4), teacher.adapted_copy(4)
    for parameter in first.parameters():
        parameter.data += 0.1
    state = first.state_dict()
    assert set(state) == {name for name, _ in first.named_parameters()}
    second.load_state_dict(state)
    x, sigma = inputs(teacher)
    assert torch.equal(first(x, sigma), second(x, sigma))
    with pytest.raises(ValueError, match="the state holds other adapters"):
        second.load_state_dict({})


def arguments(folder: Path, *extra: str) -> list[str]:
    teacher = folder / "p"
    if not teacher.exists():
        tiny.save_unet(teacher, num_class_embeds=3)
        save_gan(folder / "gan.pkl")
    return ["--kind=di", f"--teacher={teacher}", f"--gan-pkl={folder / 'gan.pkl'}", *SHORT, "--state=1", *extra]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    given = arguments(tmp_path, "--fake-rank=2", "--checkpointing=true")
    result = CliRunner().invoke(train.main, [*given, f"--outdir={tmp_path / 'whole'}"])
    assert result.exit_code == 0, result.output + str(result.exception)
    (whole,) = (tmp_path / "whole").iterdir()
    killed = killed_run(tmp_path / "killed", 1, *given)
    result = CliRunner().invoke(train.main, [f"--resume={killed}"])
    assert result.exit_code == 0, result.output
    tensors = last_state(whole).tensors
    assert [name for name, value in last_state(killed).tensors.items() if not same_bits(value, tensors[name])] == []
    scores = [name for name in tensors if name.startswith("fake_score.")]
    assert scores
    assert all(".lora_" in name for name in scores)
    moments = [name for name in tensors if name.startswith("optimizer.fake_score") and "exp_avg" in name]
    assert len(moments) == 2 * len(scores)
    moved = [name for name in scores if ".lora_B" in name and tensors[name].abs().max() > 0]
    assert len(moved) == len(scores) // 2


def test_where_there_can_be_no_adapters_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = save_files(tmp_path)
    command = ["--kind=di", f"--gan-pkl={files['gan']}", *SHORT, f"--outdir={tmp_path / 'runs'}"]

    def told(*extra: str) -> str:
        result = CliRunner().invoke(train.main, [*command, *extra])
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    network = f"--teacher={files['teacher']}"
    with pytest.raises(UserError, match="--fake-rank=4: a GaussianDenoiser cannot have low-rank adapters"):
        GaussianDenoiser(0.0, 1.0).adapted_copy(4)
    assert "--fake-rank=4 makes them share one" in told(network, "--fake-rank=4", "--fsdp=true")
    teacher = open_teacher(str(tiny.save_unet(tmp_path / "p")))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="--fake-rank=4 needs the package peft, which is not installed: pip install"):
        teacher.adapted_copy(4)
    assert not (tmp_path / "runs").exists()


def test_memory_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    result = CliRunner().invoke(adapters_memory.main, ["--network=tiny", "--rank=2", "--batch=1", f"--json={path}"])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    copy, adapters = rows["copy"], rows["adapters"]
    assert copy["weights"] == 2 * copy["teacher"]
    assert copy["moments"] == 2 * copy["gradients"] == 2 * copy["teacher"]
    assert adapters["weights"] == adapters["teacher"] + adapters["gradients"]
    assert adapters["moments"] == 2 * adapters["gradients"]
    assert adapters["gradients"] < copy["gradients"]


@pytest.mark.parametrize("kind", ["pixels", "texts", "transformer"])
def test_one_pass_says_what_teacher_and_fake_score_say(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = opened(kind, tmp_path / "p").double()
    adapted = teacher.adapted_copy(4)
    assert isinstance(adapted, AdaptedRowwise)
    assert isinstance(teacher, DiscreteTeacher)
    adapted.denoiser.double()
    for parameter in adapted.parameters():
        parameter.data.add_(0.05)
    x, sigma = (t.double() for t in inputs(teacher))
    labels = torch.eye(teacher.label_dim).double()[[0, 1]] if teacher.label_dim else None
    x.requires_grad_()

    rows: list[int] = []
    adapted.denoiser.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    teacher.network.register_forward_pre_hook(lambda module, args: rows.append(-len(args[0])))

    def said() -> list[torch.Tensor]:
        """Both results, and the gradient of their product in x."""
        at = Noised(x, torch.zeros_like(x), sigma, labels, teacher, adapted, differentiable=True)
        return [at.teacher_x0, at.fake_x0, *torch.autograd.grad((at.teacher_x0 * at.fake_x0).sum(), x)]

    got = said()
    assert rows == [6 if kind == "texts" else 4]  # one pass, of both, and of the teacher without its text
    monkeypatch.setattr(AdaptedRowwise, "beside", lambda *args: None)
    expected = said()
    assert rows[1:] == ([-2, -2, 2] if kind == "texts" else [-2, 2])
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got[0], got[1])


def test_another_teacher_has_a_pass_of_its_own(tmp_path: Path) -> None:
    teacher = opened("pixels", tmp_path / "p")
    x, sigma = inputs(teacher)
    assert teacher.adapted_copy(4).beside(teacher.trainable_copy(), x, sigma, None) is None
    assert teacher.trainable_copy().beside(teacher, x, sigma, None) is None
    many = x.repeat(3, 1, 1, 1)
    assert teacher.adapted_copy(4).beside(teacher, many, sigma.repeat(3), None) is None
