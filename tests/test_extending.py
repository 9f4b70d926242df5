"""The code of docs/extending.md runs from top to bottom, and does what the page says."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan_di.critics import CRITICS
from stylegan_di.divergences import DIVERGENCES
from stylegan_di.journal import SINKS
from stylegan_di.metrics.statistics import FeatureStats
from stylegan_di.metrics.table import METRICS
from stylegan_di.spaces import SPACES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
TABLES: list[dict[str, Any]] = [CRITICS, DIVERGENCES, METRICS, SINKS, SPACES]


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Any]]:
    """What the page's code defines; the tables are as before afterwards."""
    before = [dict(table) for table in TABLES]
    module = types.ModuleType("extending_page")
    sys.modules[module.__name__] = module  # where dataclasses look for the module of a class
    names = module.__dict__
    try:
        for number, snippet in enumerate(SNIPPETS, start=1):
            exec(compile(snippet, f"docs/extending.md, snippet {number}", "exec"), names)
        yield names
    finally:
        del sys.modules[module.__name__]
        for table, entries in zip(TABLES, before, strict=True):
            table.clear()
            table.update(entries)


def test_every_table_of_the_page_is_shown() -> None:
    assert len(SNIPPETS) == 8
    rows = re.findall(r"^\| ([\w ]+) \| `[\w.]+` \| `([\w.]+)`", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} >= {"divergence", "teacher", "space", "student", "critic", "metric", "sink"}
    for _, path in rows:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(__import__(f"stylegan_di.{module}", fromlist=[name]), name), dict)
    for test in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (Path(__file__).resolve().parent.parent / test).is_file(), test


def test_the_divergence_is_a_spec(made: dict[str, Any]) -> None:
    terms = made["divergence"].terms
    assert [weight for weight, _ in terms] == [1.0, 0.1]
    assert terms[0][1] == made["BoundedIKL"](limit=0.5)


def test_the_student_has_images_by_seed(made: dict[str, Any]) -> None:
    student, images = made["student"], made["images"]
    assert images.shape == (3, 1, 32, 32)
    assert DIVERGENCES["bounded"] is made["BoundedIKL"]
    again = made["Linear"]()
    again.load_state_dict(student.state_dict())
    torch.testing.assert_close(again.draw([1], class_index=8), student.draw([0, 1], class_index=8)[1:])


def test_the_training_moves_student_and_fake_score(made: dict[str, Any]) -> None:
    statistics = made["statistics"]
    assert {"Loss/fake_score", "Gradient/student", "Gradient/fake_score"} <= statistics.keys()
    assert statistics["Gradient/student"]["num"] == 2
    start = made["teacher"].denoiser.state_dict()
    moved = made["instruction"].fake_score.state_dict()
    assert any(not torch.equal(value, moved[key]) for key, value in start.items())


def test_guidance_is_its_formula(made: dict[str, Any]) -> None:
    teacher = made["teacher"]
    x, sigma, labels = torch.randn(2, 1, 16, 16), torch.tensor([0.5, 2.0]), torch.eye(10)[:2]
    with torch.no_grad():
        plain, null = teacher.denoiser(x, sigma, labels), teacher.denoiser(x, sigma)
        torch.testing.assert_close(teacher(x, sigma, labels), null + 1.5 * (plain - null))


def test_metric_and_critic_compute(made: dict[str, Any]) -> None:
    stats = [FeatureStats(np.full(3, value), np.eye(3), 10) for value in (0.0, 2.0)]
    assert METRICS["mean_fashion"].compute(*stats, torch.device("cpu")) == (12.0,)  # type: ignore[union-attr]
    images = torch.full([2, 1, 4, 4], 0.25)
    assert made["Brightness"]().logits(images, images, torch.ones(2), None).tolist() == [[0.25], [0.25]]


def test_the_sink_writes(made: dict[str, Any], tmp_path: Path) -> None:
    SINKS["csv"](tmp_path).scalars({"Loss/fake_score": {"num": 1, "mean": 2.5, "std": 0.0}})
    assert (tmp_path / "stats.csv").read_text() == "Loss/fake_score,2.5\n"
