"""--device=mps, as far as another machine shows it: on a stand-in for a GPU without float64 and native kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan_di.commands.generate import main as generate
from stylegan_di.commands.metrics import main as metrics
from stylegan_di.commands.project import main as project
from stylegan_di.commands.style_mix import main as style_mix
from stylegan_di.commands.train import main as train
from stylegan_di.commands.train import new_config
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.cli import Device, default_device
from stylegan_di.journal.journal import Journal
from stylegan_di.metrics.equivariance import errors_of
from stylegan_di.snapshots.checkpoint import load_generator
from stylegan_di.teachers.discrete import Times
from stylegan_di.torch_utils.ops import build
from stylegan_di.torch_utils.precision import as_float64, moved, widest
from stylegan_di.training.batch import Batch
from stylegan_di.training.methods import build as build_method
from tests.pretended import DEVICE, Pretended, pretended
from tests.tiny import save_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def run(
    command: click.Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch, device: str = str(DEVICE)
) -> None:
    with monkeypatch.context() as patch, pretended(patch):
        patch.setattr(Device, "convert", lambda self, value, param, ctx: value)
        result = CliRunner().invoke(command, [*arguments, f"--device={device}"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


# The stand-in.


def test_the_stand_in_refuses_what_such_a_gpu_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch):
        x = torch.ones([2, 3], device=DEVICE)
        assert isinstance(x, Pretended)
        with pytest.raises(TypeError, match=r"no torch\.float64"):
            x.double()
        with pytest.raises(TypeError, match=r"no torch\.float64"):
            torch.ones([2], dtype=torch.float64).to(DEVICE)
        with pytest.raises(AssertionError, match="two devices"):
            x + torch.ones([3])
        layer = torch.nn.Linear(3, 2).to(DEVICE)
        layer(x).square().sum().backward()
        assert isinstance(layer.weight.grad, Pretended)
        assert x.cpu().tolist() == [[1, 1, 1], [1, 1, 1]]


# The option.


def test_mps_is_a_device_where_pytorch_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = Device().convert
    with pytest.raises(click.BadParameter, match="finds no GPU of Apple's here; use cpu"):
        convert("mps", None, None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert convert("mps", None, None) == "mps"
    assert default_device() != "mps"
    assert TrainConfig("edm", data="a.zip", device="mps").device == "mps"
    with pytest.raises(click.BadParameter, match="accepted are cpu, cuda, cuda:N and mps"):
        convert("mps:0", None, None)


def test_its_ops_are_the_reference() -> None:
    assert build.load("mps", may_build=True) == "reference (there are native kernels for cpu and cuda)"


def test_pytorch_is_asked_to_compute_the_rest_on_the_cpu() -> None:
    script = "import stylegan_di.commands, sys, os; assert 'torch' not in sys.modules; "
    script += "print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    for chosen in ({}, {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}):
        command = [sys.executable, "-c", script]
        told = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=True).stdout
        assert told.strip() == chosen.get("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def test_float64_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (widest(torch.device("mps")), widest(torch.device("cpu"))) == (torch.float32, torch.float64)
    x = torch.tensor([1 / 3], dtype=torch.float64)
    assert moved(x, torch.device("cpu")) is x
    with pretended(monkeypatch):
        there = moved(x, DEVICE)
        assert (there.dtype, as_float64(there).dtype) == (torch.float32, torch.float64)
        assert moved(torch.ones(2, dtype=torch.int64), DEVICE).dtype == torch.int64
        assert Times(x, "epsilon").to(DEVICE).levels.dtype == torch.float32


# What runs on it.


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("gan", ["--trunc=0.7", "--noise-mode=random"]),
        ("stylegan3", ["--translate=0.1,0", "--rotate=30"]),
        ("r3gan", []),
        ("teacher", ["--steps=3", "--S_churn=4"]),
        ("teacher", ["--steps=3", "--solver=dpmpp"]),
        ("teacher", ["--steps=3", "--solver=euler", "--disc=ve", "--S_churn=4"]),
    ],
)
def test_images_are_those_of_the_cpu(
    network: str, options: list[str], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in (str(DEVICE), "cpu"):
        arguments = [f"--network={files[network]}", "--seeds=0-2", *options, f"--outdir={tmp_path / device[:3]}"]
        run(generate, arguments, monkeypatch, device)
    for name in ("seed0000.png", "seed0001.png", "seed0002.png"):
        there, here = (np.asarray(Image.open(tmp_path / device / name), dtype=int) for device in ("met", "cpu"))
        assert np.abs(there - here).max() <= 1


def test_a_training_runs_from_end_to_end(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--kind=di", f"--gan-pkl={files['gan']}", f"--teacher={files['teacher']}", f"--ref={files['ref']}"]
    options += ["--metrics=fd_fashion", "--metric-samples=16", "--whitening=1", "--clip=true", "--batch=4"]
    run(train, [*options, "--kimg=0.008", "--tick=0.004", "--snap=1", f"--outdir={tmp_path}"], monkeypatch)
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "result.json").read_text())
    assert load_generator(str(folder / "network-best.pkl")).draw([0], class_index=1).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        ["--kind=di", "--gan-pkl={gan}", "--teacher={teacher}", "--data={data}", "--cond=true", "--adv-weight=1"],
        ["--kind=di", "--gan-pkl={stylegan3}", "--teacher=1*{teacher}@0-1", "--teacher=1*{teacher}@0.5-"],
        ["--kind=di", "--teacher={teacher}", "--sigma-init=2.5", "--divergence=sid:alpha=1.2"],
        ["--kind=edm", "--data={data}", "--cond=true", "--model-channels=8", "--channel-mult=1", "--num-blocks=1"],
        ["--kind=gan", "--data={data}", "--cond=true", "--cbase=64", "--cmax=8", "--aug=fixed", "--p=0.9"],
        ["--kind=gan", "--data={data}", "--cond=true", "--resume={r3gan}", "--cfg=r3gan", "--gamma=1"],
    ],
)
def test_methods_step(options: list[str], files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = [option.format(**files) for option in options]
    parsed = train.make_context("train", [*given, "--batch=4", "--metrics=none"]).params
    config = new_config(**{name: value for name, value in parsed.items() if name != "dry_run"})
    with pretended(monkeypatch):
        method = build_method(config, DEVICE)
        journal = Journal([], DEVICE)
        method.step(
            Batch.of_step(seed=0, nimg=0, size=4, batch_gpu=4, rank=0, world_size=1, device=DEVICE), journal
        )
        found = journal.drain()
    assert found
    assert not [name for name in found if name.startswith("nonfinite") or not np.isfinite(found[name]["mean"])]


def test_metrics_are_those_of_the_cpu(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "fd_fashion,pr_fashion,kid_fashion,dc_fashion,cr_fashion"
    lines = {}
    for device in (str(DEVICE), "cpu"):
        arguments = [f"--network={files['gan']}", f"--metrics={names}", f"--data={files['data']}", "--num=16"]
        run(metrics, [*arguments, f"--outdir={tmp_path / device[:3]}"], monkeypatch, device)
        found = sorted((tmp_path / device[:3]).glob("metric-*.jsonl"))
        lines[device] = {path.name: json_results(path) for path in found}
    assert lines[str(DEVICE)].keys() == lines["cpu"].keys()
    assert len(lines["cpu"]) == 5
    for name, results in lines["cpu"].items():
        assert lines[str(DEVICE)][name] == pytest.approx(results, rel=1e-3, abs=1e-3)


def json_results(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())["results"]


def test_tools_run(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = [f"--network={files['gan']}", "--class=1"]
    run(style_mix, [*gan, "--rows=0-1", "--cols=2-3", f"--outdir={tmp_path / 'mixed'}"], monkeypatch)
    target = f"--target={tmp_path / 'mixed' / '0-2.png'}"
    run(project, [*gan, target, "--num-steps=2", f"--outdir={tmp_path / 'projected'}"], monkeypatch)
    assert (tmp_path / "projected" / "projected_w.npz").is_file()


@pytest.mark.parametrize("motion", ["int", "frac", "rotation"])
def test_equivariance_is_that_of_the_cpu(motion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn([2, 1, 32, 32], generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[0.3, 0.6], [0.8, 0.1]], dtype=torch.float64)
    expected = errors_of(lambda transforms: images, motion, draws, 32)  # type: ignore[arg-type]
    with pretended(monkeypatch):
        there = images.to(DEVICE)
        found = errors_of(lambda transforms: there, motion, draws, 32)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
