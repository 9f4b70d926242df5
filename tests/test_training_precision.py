"""--amp and --compile: the updates they give against those of float32, uncompiled."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import train
from stylegan_di.journal.journal import Journal
from stylegan_di.snapshots.checkpoint import load_snapshot
from stylegan_di.students.one_step import OneStepStudent
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from stylegan_di.training import precision
from stylegan_di.training.batch import Batch
from tests.tiny import edm_network, gan_networks, save_files
from tools.dev.benchmark_rows import step_of

pytestmark = pytest.mark.usefixtures("small_grids")

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def gradients(kind: str, device: str, amp: torch.dtype | None, compiled: bool = False) -> dict[str, Tensor]:
    """Of one step's two updates, [n] each, as Adam with beta1 = 0 holds them for its mean."""
    student: Any = OneStepStudent(edm_network(seed=1), 2.5)
    if kind == "gan":
        student = StyleGAN2Student(gan_networks()["G"])  # type: ignore[arg-type]
    teacher, fake_score = EDMTeacher(edm_network(seed=2)), EDMTeacher(edm_network(seed=3))
    for module in (student, teacher, fake_score):
        module.to(device)
        for parameter in module.parameters():
            if parameter.abs().max() < 1e-3:  # a new network's last layers are zero, and hide all the others
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator(device).manual_seed(0))
    if compiled:
        for denoiser in (teacher, fake_score):
            denoiser.network.compile(backend="aot_eager")  # all of it but the C++ compiler, which takes a minute
    where = torch.device(device)
    method = step_of(student, teacher, fake_score, where)
    batch = Batch.of_step(seed=0, nimg=0, size=16, batch_gpu=16, rank=0, world_size=1, device=where)
    with torch.autocast(device, amp, cache_enabled=False) if amp else contextlib.nullcontext():
        samples = method.samples(batch)
        method.fake_score_update(method.instructions[0], batch, Journal((), where), samples=samples)
        method.student_update(batch, Journal((), where), samples)
    return {
        role: torch.cat([entry["exp_avg"].flatten() for entry in optimizer.state.values()])
        for role, optimizer in method.state.optimizers.items()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["gan", "onestep"])
@pytest.mark.parametrize(("amp", "error"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_autocast_gives_nearly_the_gradients_of_float32(
    kind: str, device: str, amp: torch.dtype, error: float
) -> None:
    exact, near = gradients(kind, device, None), gradients(kind, device, amp)
    for role, expected in exact.items():
        difference = float((near[role] - expected).norm() / expected.norm())
        assert near[role].dtype == torch.float32
        assert 1e-6 < difference < error * (1.5 if device == "cuda" else 1), role


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_compiled_networks_give_the_same_gradients() -> None:
    expected, found = gradients("onestep", "cpu", None), gradients("onestep", "cpu", None, compiled=True)
    for role in expected:
        torch.testing.assert_close(found[role], expected[role], rtol=0, atol=2e-5 * float(expected[role].abs().max()))


def test_auto_takes_the_faster_type_by_the_clock() -> None:
    """Each pass reads the clock twice; passes in float32 come first."""
    student: Any = StyleGAN2Student(gan_networks()["G"])  # type: ignore[arg-type]
    teacher, fake_score = EDMTeacher(edm_network(seed=2)), EDMTeacher(edm_network(seed=3))
    method = step_of(student, teacher, fake_score, torch.device("cpu"))
    weights = [p.clone() for p in method.instructions[0].fake_score.parameters()]
    for times, expected in (((5, 2, 4, 9, 8, 3), "none"), ((5, 4, 4, 9, 1.5, 3), "bf16")):
        readings = iter([reading for took in times for reading in (10.0, 10.0 + took)])
        chosen, why = precision.choose(method, lambda readings=readings: next(readings))  # type: ignore[misc]
        assert chosen == expected
        seconds = f"{min(times[:3]):.3f} s in float32, {min(times[3:]):.3f} s in bf16"
        assert why == f"{'float32' if chosen == 'none' else 'bf16'}: a pass of 16 images takes {seconds}"
    for before, after in zip(weights, method.instructions[0].fake_score.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.grad is None
    method.device = torch.device("cuda")
    assert precision.choose(method) == ("bf16", "bf16: this is a GPU")


SHORT = ["--device=cpu", "--batch=4", "--kimg=0.008", "--tick=0.008", "--snap=1", "--metrics=none"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def trained(outdir: Path, *options: str) -> Tensor:
    """The weights a short run ends with, [n]."""
    result = CliRunner().invoke(train.main, [*SHORT, *options, f"--outdir={outdir}"])
    assert result.exit_code == 0, result.output + str(result.exception)
    (snapshot,) = outdir.glob("*/network-snapshot-000000.pkl")
    return torch.cat([value.flatten() for value in load_snapshot(snapshot).networks["ema"].parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["di", "edm"])
def test_the_command_line_trains_in_bf16(kind: str, files: dict[str, str], tmp_path: Path) -> None:
    source = f"--teacher={files['teacher']}" if kind == "di" else f"--data={files['data']}"
    small = [] if kind == "di" else ["--model-channels=8", "--channel-mult=1", "--num-blocks=1", "--workers=0"]
    options = [f"--kind={kind}", source, *small]
    exact, near = trained(tmp_path / "a", *options), trained(tmp_path / "b", *options, "--amp=bf16")
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.05


def test_what_auto_chose_is_said_and_kept_for_a_resume(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "choose", lambda method: ("bf16", "bf16: it is Thursday"))
    options = ["--kind=di", f"--teacher={files['teacher']}"]
    found, expected = trained(tmp_path / "a", *options, "--amp=auto"), trained(tmp_path / "b", *options, "--amp=bf16")
    assert torch.equal(found, expected)
    (folder,) = (tmp_path / "a").iterdir()
    assert json.loads((folder / "training_options.json").read_text())["amp"] == "bf16"
    assert "amp             bf16: it is Thursday" in (folder / "log.txt").read_text()


def test_compiled_runs_end_with_the_same_weights(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--kind=di", f"--teacher={files['teacher']}"]
    expected = trained(tmp_path / "a", *options)
    compiled, compile_module = [], torch.nn.Module.compile

    def quickly(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quickly)
    found = trained(tmp_path / "b", *options, "--compile=true")
    assert compiled == ["EDMPrecond"] * 3  # student, fake score, teacher
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind=gan", "--data=x", "--amp=bf16"], "--amp=bf16 belongs to --kind=edm or di; this is --kind=gan"),
        (["--kind=gan", "--data=x", "--compile=true"], "--compile=true belongs to --kind=edm or di"),
        (["--kind=di", "--gan-pkl=x", "--divergence=none", "--adv-weight=1", "--data=y", "--compile=true"],
         "--compile=true has no effect with --divergence=none"),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2
    assert message in result.output


def test_compiling_without_a_compiler_is_refused(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = [*SHORT, "--kind=di", f"--teacher={files['teacher']}", "--compile=true", f"--outdir={tmp_path}"]
    result = CliRunner().invoke(train.main, options)
    assert result.exit_code == 2
    assert "--compile: there is no compiler (no-such-compiler): install one" in result.output
