"""The examples run as a reader runs them, cut short, and do what they say."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("divergence", ["ikl", "0.5*fisher+sim"])
def test_points_of_the_plane_reach_the_teachers_spots(divergence: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "points.png"
    result = run("diff_instruct_2d.py", "--steps=200", f"--divergence={divergence}", f"--out={picture}")
    assert result.returncode == 0, result.stderr
    distances = [float(number) for number in re.findall(r"^step +\d+: distance ([0-9.]+), drawn", result.stdout, re.M)]
    assert len(distances) == 6
    assert distances[-1] < 0.05 * distances[0]
    with Image.open(picture) as image:
        assert image.size == (780, 260)
        before, after, teacher = (image.crop((left, 0, left + 260, 260)).histogram()[0] for left in (0, 260, 520))
    assert before < after < teacher  # black pixels: the student's points spread, and the teacher's are spread


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        ("ikl:f=js", "--divergence=ikl:f=js: this example has neither critic nor real samples; take ikl"),
        ("realuid", "--divergence=realuid: this example has neither critic nor real samples; take ikl"),
        ("none", "--divergence=none: this example has neither critic nor real samples; take ikl"),
        ("simm", "there is no 'simm'; accepted: ikl, sid, sim, fisher, realuid; did you mean sim?"),
    ],
)
def test_what_the_example_cannot_do_is_refused(divergence: str, message: str, tmp_path: Path) -> None:
    result = run("diff_instruct_2d.py", f"--divergence={divergence}", f"--out={tmp_path / 'points.png'}")
    assert result.returncode == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_grids")
@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("decoder", (480, 384), ""),
        ("few_steps", (576, 288), "--student-steps=4 --kimg=0.008"),
        ("flow", (480, 288), "after: entropy "),
        ("radiance", (528, 480), ""),
        ("refiner", (576, 480), "pixels moved by 0."),
    ],
)
def test_students_are_trained_and_drawn(name: str, size: tuple[int, int], told: str, tmp_path: Path) -> None:
    main = importlib.import_module(f"examples.{name}").main
    result = CliRunner().invoke(
        main, [f"--outdir={tmp_path}", "--kimg=0.008", "--batch=4", "--metrics=none", "--device=cpu"]
    )
    assert result.exit_code == 0, result.output + str(result.exception)
    assert told in result.output
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.size == size
        assert image.convert("L").getextrema()[1] > 64
    refused = CliRunner().invoke(main, [f"--outdir={tmp_path}", "--kimg=-1"])
    assert (refused.exit_code, refused.output.splitlines()[-1][:13]) == (2, "Error: --kimg")
