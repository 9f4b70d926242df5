"""The short form of tools/dev/kill_test.py; docs/reliability.md has the long one's figures."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_di.runs import statefile
from tools.dev import kill_test

ROOT = Path(__file__).resolve().parent.parent


def test_a_few_kills_change_no_bit_and_tear_no_state(tmp_path: Path) -> None:
    script = str(ROOT / "tools" / "dev" / "kill_test.py")
    command = [sys.executable, script, "--kills=3", "--fresh=1", "--torn=20", "--seed=1"]
    done = subprocess.run([*command, f"--dest={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"torn states: 0 after 20 kills, \d+ of them inside a save", done.stdout)
    assert re.search(r"kills: 3, of them 1 of fresh processes, .*; [1-9]\d* runs compared, 0 differences", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """What is compared of a complete run: a state and lines of statistics."""
    write(tmp_path, torch.zeros(3))
    (tmp_path / "stats.jsonl").write_text('{"Loss/r1": 1, "timestamp": 5}\n')
    return tmp_path


def write(folder: Path, moment: torch.Tensor) -> None:
    tensors = {"model.a": torch.ones(2), "ema.a": torch.ones(2), "optimizer.model.0.exp_avg": moment}
    statefile.save_state(statefile.state_path(folder, 4), tensors, {"state": {"cur_nimg": 4}}, {}, "")


def test_a_difference_of_one_bit_is_noticed(complete: Path) -> None:
    before = dict(kill_test.groups(complete))
    write(complete, torch.tensor([0.0, 0.0, -0.0]))
    after = dict(kill_test.groups(complete))
    assert [name for name in before if before[name] != after[name]] == ["Adam moments"]
    (complete / "stats.jsonl").write_text('{"Loss/r1": 1, "timestamp": 6}\n')
    assert dict(kill_test.groups(complete)) == after


def test_a_torn_state_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(path: Path, tensors: object, values: object, *_: object) -> None:
        original(path, tensors, values, {}, "")  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes()[:-1])

    original = statefile.save_state
    monkeypatch.setattr(statefile, "save_state", torn)
    monkeypatch.setattr(statefile, "load_state", lambda path: statefile.State(path, {}, {"nimg": 1}, {}))
    _, broken, _ = kill_test.torn_saves(tmp_path / "torn", 1, np.random.default_rng(0))
    assert broken == 1
