"""tools/dev/scaling.py: its grids, tables and files, that memory grows with the batch, and what is timed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stylegan_di.metrics.extractors import open_extractor
from tools.dev import scaling


def measured(*arguments: str, target: Path) -> tuple[dict[str, Any], str]:
    """What a command writes as JSON, and what it prints."""
    result = CliRunner().invoke(scaling.main, [*arguments, f"--json={target}"])
    assert result.exit_code == 0, result.output
    return json.loads(target.read_text()), result.output


def test_batches_double_up_to_the_most_images_and_pixels() -> None:
    found = list(scaling.grid([32, 64], most_batch=4, most_pixels=2 * 64**2))
    assert found == [(32, 1), (32, 2), (32, 4), (64, 1), (64, 2)]


def test_steps_table_and_json_agree_and_memory_grows(tmp_path: Path) -> None:
    arguments = ("steps", "--resolution=32", "--most-batch=16", "--rounds=1")
    report, output = measured(*arguments, target=tmp_path / "made" / "scaling.json")
    cells = report["cells"]
    assert [cell["batch"] for cell in cells] == [1, 2, 4, 8, 16]
    assert cells[-1]["peak_mib"] > 2 * cells[2]["peak_mib"] > 0
    assert report["torch"] == torch.__version__
    for cell in cells:
        assert f"| 32 | {cell['batch']} | {cell['images_per_second']:.1f} | {cell['peak_mib']:.0f} |" in output


def test_a_plot_has_a_line_a_resolution_and_is_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [
        {"resolution": side, "batch": batch, "images_per_second": 10 * batch, "peak_mib": side * batch}
        for side in (32, 64)
        for batch in (1, 2)
    ]
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    scaling.plot_steps(cells, first)
    scaling.plot_steps(cells, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().count("64x64") >= 2
    with pytest.raises(scaling.UserError, match=r"accepted are names that end in \.svg or \.png"):
        scaling.plot_steps(cells, tmp_path / "c.txt")


def test_a_missing_matplotlib_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(scaling.UserError, match=r'pip install "\.\[plot\]" in the clone'):
        scaling.plot_steps([], tmp_path / "a.svg")


def test_each_number_of_processes_whole_and_spread() -> None:
    assert list(scaling.layouts(4)) == [(1, False), (2, False), (2, True), (4, False), (4, True)]


def test_processes_table_and_json_agree(tmp_path: Path) -> None:
    arguments = ("processes", "--model-channels=8", "--batch=2", "--steps=1", "--processes=1")
    report, output = measured(*arguments, target=tmp_path / "made" / "processes.json")
    (run,) = report["runs"]
    assert run["images_per_second"] > 0
    assert run["process_mib"] > 100  # PyTorch alone takes more
    assert f"| 1 | whole | {run['images_per_second']:.2f} | {run['process_mib']:.0f} |" in output


def test_a_plot_names_each_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        {"processes": 1, "weights": "whole", "images_per_second": 1.0, "process_mib": 10.0},
        {"processes": 2, "weights": "spread", "images_per_second": 1.5, "process_mib": 8.0},
    ]
    scaling.plot_processes(runs, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count(">1<") == text.count(">2, spread<") == 2  # one in each panel


def test_memory_of_a_grandchild_counts() -> None:
    code = "data = bytearray(200 << 20); print(len(data), flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        sizes = scaling.family_mib(child.pid)
        child.communicate(b"\n")
    assert len(sizes) == 2
    assert max(sizes) > 200 > min(sizes)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(scaling.UserError, match=r"(?s)ended with status 2:.*no-such-teacher"):
        scaling.run_cost(tmp_path / "no-such-teacher.pkl", 2, 1, 1, False)


def test_parts_are_scaled_but_for_the_distance() -> None:
    images = torch.randint(0, 256, [8, 3, 32, 32], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = list(scaling.feature_parts(open_extractor("fashion", None), "classifier", images, 2))
    assert [part["scaled"] / part["seconds"] for part in parts] == pytest.approx([1250, 1250, 1])
    assert all(part["images"] == 8 and part["seconds"] > 0 for part in parts)


def test_metrics_rows_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "small StyleGAN2, 32x32"
    monkeypatch.setattr(scaling, "GENERATORS", {name: scaling.GENERATORS[name]})
    monkeypatch.setattr(scaling, "inception", lambda: open_extractor("fashion", None))
    arguments = ("metrics", "--batches=1,4", "--num=8", "--batch=4", "--rounds=1")
    report, output = measured(*arguments, target=tmp_path / "cost.json")
    assert [speed["batch"] for speed in report["speeds"]] == [1, 4]
    assert len(report["parts"]) == 7
    for speed in report["speeds"]:
        assert f"| {name} | {speed['batch']} | {speed['images_per_second']:.1f} |" in output
    assert CliRunner().invoke(scaling.main, ["metrics", "--batches=x"]).exit_code == 2
