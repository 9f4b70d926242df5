"""The demos' scripts, with the shipped models and runs cut short."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tools import demo, demo_distill


def test_demo_refines_the_shipped_gan_and_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.subprocess.run
    short = ["--kimg=0.064", "--metric-samples=64", "--device=cpu"]
    monkeypatch.setattr(demo.subprocess, "run", lambda command, **kwargs: real([*command, *short], **kwargs))
    grid = tmp_path / "out" / "demo.png"
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'runs'}", f"--dest={grid}"])
    assert result.exit_code == 0, result.output
    with Image.open(grid) as image:
        assert image.size == (4 * 160, 4 * (64 + 2 + 64))


def test_demo_distill_sets_student_beside_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo_distill.run
    short = {"train.py": ["--kimg=0.064", "--metric-samples=64", "--device=cpu"], "calc_metrics.py": ["--device=cpu"]}
    commands: list[tuple[str, ...]] = []

    def shortened(*command: str) -> None:
        commands.append(command)
        real(*command, *short[command[0]])

    monkeypatch.setattr(demo_distill, "run", shortened)
    monkeypatch.setattr(demo_distill, "SAMPLES", 64)
    result = CliRunner().invoke(demo_distill.main, [f"--outdir={tmp_path}"])
    assert result.exit_code == 0, result.output
    assert {"--solver=dpmpp", "--steps=8"} <= set(commands[1])
    assert re.search(r"teacher, 8 steps +student, 1 step\nfd_fashion +\d+\.\d+ +\d+\.\d+", result.output)
