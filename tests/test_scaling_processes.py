"""tools/dev/scaling_processes.py: real runs of several processes, and whose memory is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.dev import scaling_processes


def test_each_number_of_processes_whole_and_spread() -> None:
    assert list(scaling_processes.layouts(4)) == [(1, False), (2, False), (2, True), (4, False), (4, True)]


def test_table_and_json_agree(tmp_path: Path) -> None:
    target = tmp_path / "made" / "processes.json"
    arguments = ["--model-channels=8", "--batch=2", "--steps=1", "--processes=1", f"--json={target}"]
    result = CliRunner().invoke(scaling_processes.main, arguments)
    assert result.exit_code == 0, result.output
    (run,) = json.loads(target.read_text())["runs"]
    assert run["images_per_second"] > 0
    assert run["process_mib"] > 100  # PyTorch alone takes more
    assert f"| 1 | whole | {run['images_per_second']:.2f} | {run['process_mib']:.0f} |" in result.output


def test_a_plot_names_each_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [scaling_processes.Run(1, False, 1.0, 10.0), scaling_processes.Run(2, True, 1.5, 8.0)]
    scaling_processes.plot(runs, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count(">1<") == text.count(">2, spread<") == 2  # one in each panel


def test_memory_of_a_grandchild_counts() -> None:
    code = "data = bytearray(200 << 20); print(len(data), flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        sizes = scaling_processes.family_mib(child.pid)
        child.communicate(b"\n")
    assert len(sizes) == 2
    assert max(sizes) > 200 > min(sizes)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(scaling_processes.UserError, match=r"(?s)ended with status 2:.*no-such-teacher"):
        scaling_processes.measure(tmp_path / "no-such-teacher.pkl", 2, 1, 1, False)
