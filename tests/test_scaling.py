"""tools/dev/scaling.py: its grid, its table and files, and that memory grows with the batch."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.dev import scaling


def test_batches_double_up_to_the_most_images_and_pixels() -> None:
    found = list(scaling.grid([32, 64], most_batch=4, most_pixels=2 * 64**2))
    assert found == [(32, 1), (32, 2), (32, 4), (64, 1), (64, 2)]


def test_table_and_json_agree_and_memory_grows(tmp_path: Path) -> None:
    target = tmp_path / "made" / "scaling.json"
    arguments = ["--resolution=32", "--most-batch=16", "--rounds=1", f"--json={target}"]
    result = CliRunner().invoke(scaling.main, arguments)
    assert result.exit_code == 0, result.output
    cells = json.loads(target.read_text())["cells"]
    assert [cell["batch"] for cell in cells] == [1, 2, 4, 8, 16]
    assert cells[-1]["peak_mib"] > 2 * cells[2]["peak_mib"] > 0
    for cell in cells:
        row = f"| 32 | {cell['batch']} | {cell['images_per_second']:.1f} | {cell['peak_mib']:.0f} |"
        assert row in result.output


def test_a_plot_has_a_line_a_resolution_and_is_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [scaling.Cell(side, batch, 10 * batch, side * batch) for side in (32, 64) for batch in (1, 2)]
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    scaling.plot(cells, first)
    scaling.plot(cells, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().count("64x64") >= 2
    with pytest.raises(scaling.UserError, match=r"accepted are names that end in \.svg or \.png"):
        scaling.plot(cells, tmp_path / "c.txt")


def test_a_missing_matplotlib_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(scaling.UserError, match=r'pip install "stylegan-di\[plot\]"'):
        scaling.plot([], tmp_path / "a.svg")
