"""tools/dev/gpu_check.sh, rehearsed on the CPU: each part ends by itself, and what it measures is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stylegan_di.dnnlib.util import cache_folder

ROOT = Path(__file__).resolve().parent.parent


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *metrics*) echo broken; exit 7;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {"PY": str(python), "PARTS": "machine metrics step gan agree", "DNNLIB_CACHE_DIR": str(cache_folder().parent)}
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
