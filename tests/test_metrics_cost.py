"""tools/dev/metrics_cost.py: what it times is counted right."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stylegan_di.metrics.extractors import open_extractor
from tools.dev import metrics_cost


def test_parts_are_scaled_but_for_the_distance() -> None:
    images = torch.randint(0, 256, [8, 3, 32, 32], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = metrics_cost.feature_parts(open_extractor("fashion", None), "classifier", images, 2)
    assert [part.scaled / part.seconds for part in parts] == pytest.approx([1250, 1250, 1])
    assert all(part.images == 8 and part.seconds > 0 for part in parts)


def test_rows_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "small StyleGAN2, 32x32"
    monkeypatch.setattr(metrics_cost, "GENERATORS", {name: metrics_cost.GENERATORS[name]})
    monkeypatch.setattr(metrics_cost, "inception", lambda: open_extractor("fashion", None))
    target = tmp_path / "cost.json"
    arguments = ["--batches=1,4", "--num=8", "--batch=4", "--rounds=1", f"--json={target}"]
    result = CliRunner().invoke(metrics_cost.main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert [speed["batch"] for speed in report["speeds"]] == [1, 4]
    for speed in report["speeds"]:
        assert f"| {name} | {speed['batch']} | {speed['images_per_second']:.1f} |" in result.output
    assert CliRunner().invoke(metrics_cost.main, ["--batches=x"]).exit_code == 2
