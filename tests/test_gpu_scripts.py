"""tools/dev/gpu_check.sh, rehearsed on the CPU: each part ends by itself, and what it measures is written.

Of gpu_models.sh and gpu_cifar.sh, the trainings are asked for with --dry-run.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stylegan_di.commands.train import main as train
from stylegan_di.dnnlib.util import cache_folder
from tests.tiny import save_dataset, save_gan, save_teacher

ROOT = Path(__file__).resolve().parent.parent


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *metrics*) echo broken; exit 7;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    parts = "machine metrics step gan agree"
    environment = {"PY": str(python), "PARTS": parts, "DNNLIB_CACHE_DIR": str(cache_folder().parent)}
    command = ["bash", str(ROOT / "tools/dev/gpu_check.sh"), str(tmp_path / "out"), "cpu"]
    subprocess.run(command, check=True, env=os.environ | environment, cwd=tmp_path, capture_output=True)
    ended = [json.loads(line) for line in (tmp_path / "out/parts.jsonl").read_text().splitlines()]
    assert [(part["part"], part["status"]) for part in ended] == [
        ("machine", 0), ("agree", 0), ("step", 0), ("gan", 0), ("metrics", 7)
    ]  # fmt: skip
    assert (tmp_path / "out/metrics.log").read_text() == "broken\n"
    machine, step = (json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("machine", "step"))
    assert machine["TFLOP/s bfloat16"] > 0
    assert step["peak"] == machine["TFLOP/s bfloat16"]
    assert len(step["rows"]) == 4
    for row in step["rows"]:
        assert row["images/s"] == pytest.approx(2 / (row["ms"] / 1e3))
        assert row["share of bf16 peak"] * step["peak"] == pytest.approx(row["TFLOP/s"])


#: Stands for Python: notes a training's command line, and leaves a network where the training would.
NOTES = """#!/bin/sh
case "$1" in train.py) ;; *) exit 0;; esac
printf '%s\\n' "$*" >> {folder}/lines
for word in "$@"; do case "$word" in --outdir=*) outdir=${{word#--outdir=}}/0;; esac; done
mkdir -p "$outdir"
case "$*" in *--kind=edm*) made=teacher;; *) made=gan;; esac
cp {folder}/$made.pkl "$outdir/network-snapshot-000000.pkl"
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("script", "trainings"),
    [("gpu_models.sh OUT", 3), ("gpu_cifar.sh OUT DATA GAN", 6)],
    ids=["models", "cifar"],
)
def test_the_trainings_of_a_script_are_well_formed(
    script: str, trainings: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, gan, out = save_dataset(tmp_path / "data"), save_gan(tmp_path / "gan.pkl"), tmp_path / "out"
    save_teacher(tmp_path / "teacher.pkl")
    shutil.make_archive(str(out / "fashion-32"), "zip", data)
    python = tmp_path / "python"
    python.write_text(NOTES.format(folder=tmp_path))
    python.chmod(0o755)
    places = {"OUT": str(out), "DATA": str(data), "GAN": str(gan)}
    name, *arguments = [places.get(word, word) for word in script.split()]
    command = ["bash", str(ROOT / "tools/dev" / name), *arguments, device]
    subprocess.run(command, check=True, env=os.environ | {"PY": str(python)}, capture_output=True)
    lines = (tmp_path / "lines").read_text().splitlines()
    assert len(lines) == trainings
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for line in lines:
        result = CliRunner().invoke(train, [*shlex.split(line)[1:], "--dry-run"])
        assert result.exit_code == 0, f"{line}: {result.output}"
