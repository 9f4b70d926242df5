"""Going on with a run: exact for every kind, from whichever state is intact, with no option changed unnoticed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import train
from stylegan_di.training import statefile
from stylegan_di.training.trainer import Trainer
from tests.tiny import save_dataset, save_gan, save_reference, save_teacher

SHORT = ["--device=cpu", "--batch=4", "--kimg=0.032", "--snap=2", "--state=1"]
TINY_GAN = ["--cbase=64", "--cmax=8", "--w-dim=8", "--augpipe=blit", "--p=0.1", "--aug=ada", "--ada-kimg=0.05"]
TINY_EDM = ["--model-channels=8", "--channel-mult=1", "--num-blocks=1", "--attn-resolutions=4", "--dropout=0.3"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer handles it."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "gan": str(save_gan(folder / "gan.pkl")),
        "teacher": str(save_teacher(folder / "teacher.pkl")),
        "data": str(save_dataset(folder / "data")),
        "ref": str(save_reference(folder / "ref.npz")),
    }


def commands(files: dict[str, str]) -> dict[str, list[str]]:
    metrics = [f"--ref={files['ref']}", "--metrics=fd_fashion", "--metric-samples=32", "--tick=0.008"]
    none = ["--metrics=none", "--tick=0.016"]
    di = ["--kind=di", f"--teacher={files['teacher']}", *SHORT]
    data = [f"--data={files['data']}", "--cond=true", *SHORT]
    return {
        "gan": ["--kind=gan", *data, *none, *TINY_GAN, "--pl-interval=2", "--r1-interval=3"],
        "transfer": ["--kind=gan", *data, *none, "--aug=noaug", f"--resume={files['gan']}"],
        "edm": ["--kind=edm", *data, *none, *TINY_EDM, "--label-dropout=0.3", "--workers=2"],
        "di": [*di, *metrics, f"--gan-pkl={files['gan']}", "--fake-warmup=0.008", "--lr-decay=0.5"],
        "one-step": [*di, *none, "--lr-rampup=0.02"],
        "hybrid": [*di, *none, f"--gan-pkl={files['gan']}", f"--data={files['data']}", "--cond=true", "--adv-weight=1",
                   "--gamma=0.1", "--aug=ada", "--augpipe=blit", "--ada-kimg=0.05", "--batch-gpu=2"],
    }  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(train.main, list(arguments))


def whole_run(outdir: Path, *arguments: str) -> Path:
    result = invoke(*arguments, f"--outdir={outdir}")
    assert result.exit_code == 0, result.output + str(result.exception)
    (folder,) = outdir.iterdir()
    return folder


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The trainer dies at the beginning of a step."""
    original = Trainer.step

    def dies(self: Trainer) -> None:
        if self.state.cur_step == step:
            raise Killed
        original(self)

    monkeypatch.setattr(Trainer, "step", dies)


def killed_run(outdir: Path, step: int, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train.main.main([*arguments, f"--outdir={outdir}"], standalone_mode=False)
    (folder,) = outdir.iterdir()
    return folder


def last_state(folder: Path) -> statefile.State:
    path = statefile.complete_states(folder)[-1]
    assert statefile.damage(path) is None
    return statefile.load_state(path)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file without what tells the time."""
    own = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("timestamp", "total_time")} for line in own]


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: every tensor of the last state, the lines written, the result and the pictures."""
    a, b = last_state(first), last_state(second)
    assert a.tensors.keys() == b.tensors.keys()
    assert [name for name, value in a.tensors.items() if not same_bits(value, b.tensors[name])] == []
    assert a.values["state"] == b.values["state"]
    assert a.values["evaluation"] == b.values["evaluation"]
    for path in first.glob("*.jsonl"):
        assert lines(path) == lines(second / path.name)
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    pictures = [path.name for path in first.glob("*.png")]
    assert [name for name in pictures if (first / name).read_bytes() != (second / name).read_bytes()] == []


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


@pytest.mark.parametrize("kind", ["gan", "transfer", "edm", "di", "one-step", "hybrid"])
def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(files: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Killed in step 6 of 8 and, gone on with, in step 7: weights, averages, moments, p, statistics, metrics are the
    same bits as without."""
    arguments = commands(files)[kind]
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    killed_run(tmp_path / "killed", 7, "--resume=latest")
    result = invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "goes on from" in (folder / "log.txt").read_text()
    assert_same_run(undisturbed, folder)
    names = {name.split(".")[0] for name in last_state(folder).tensors}
    assert names >= {"model", "ema", "optimizer", "pl_mean", "evaluation"}
    assert ("fake_score" in names) == (kind in ("di", "one-step", "hybrid"))
    assert ("augment_pipe" in names) == (kind in ("gan", "hybrid"))
