"""A run of each kind against figures recorded earlier: what training computes is what it computed then.

    python -m tests.test_recorded_runs

records them anew, which is right only where the numbers of a training are meant to change.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import conftest  # noqa: F401 (one thread and native kernels, also where this is run as a script)
from tests.test_resume import commands, last_state, lines, whole_run
from tests.tiny import save_files

GOLDEN = Path(__file__).parent / "golden" / "runs"
KINDS = ("gan", "transfer", "edm", "di", "one-step", "hybrid")
RELATIVE, PIXELS = 2e-3, 1e-6  # another CPU rounds otherwise; PIXELS is of differences of images
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam: gradients show in them that have hardly moved the weights


def role_of(name: str) -> str | None:
    """'model', 'model exp_avg', 'pl_mean'; None for what is no network's and no training's."""
    first, *others = name.split(".")
    if first == "optimizer":
        return f"{others[0]} {others[2]}" if others[2] in MOMENTS else None
    return None if first in ("evaluation", "report") else first


def figures(folder: Path) -> dict[str, Any]:
    """Mean and mean magnitude of all weights by role, means of the statistics tick by tick, and the metrics."""
    networks: dict[str, list[torch.Tensor]] = {}
    for name, value in last_state(folder).tensors.items():
        if (role := role_of(name)) is not None:
            networks.setdefault(role, []).append(value.double().flatten())
    weights = {role: torch.cat(values) for role, values in sorted(networks.items())}
    statistics = [
        {name: {"num": found["num"], "mean": found["mean"]} for name, found in sorted(line.items())}
        for line in lines(folder / "stats.jsonl")
    ]
    result = json.loads((folder / "result.json").read_text())
    return {
        "weights": {role: {"mean": float(w.mean()), "magnitude": float(w.abs().mean())} for role, w in weights.items()},
        "statistics": statistics,
        "metrics": {moment: result[moment] for moment in ("before", "after")},
    }


def rerun(kind: str, folder: Path) -> dict[str, Any]:
    """The figures of a run that is made now."""
    (folder / "files").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stylegan_di.training.evaluation.GRID_COLUMNS", 2)  # fewer images to draw
        return figures(whole_run(folder / "run", *commands(save_files(folder / "files"))[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_gives_the_figures_recorded(kind: str, tmp_path: Path) -> None:
    expected, found = json.loads((GOLDEN / f"{kind}.json").read_text()), rerun(kind, tmp_path)
    assert found["weights"].keys() == expected["weights"].keys()
    for role, of_weights in expected["weights"].items():
        size = of_weights["magnitude"]
        assert found["weights"][role] == pytest.approx(of_weights, rel=RELATIVE, abs=RELATIVE * size), role
    for now, then in zip(found["statistics"], expected["statistics"], strict=True):
        assert now.keys() == then.keys()
        for name, of_tick in then.items():
            assert now[name]["num"] == of_tick["num"], name
            least = PIXELS if name == "Progress/distance_from_start" else 0
            assert now[name]["mean"] == pytest.approx(of_tick["mean"], rel=RELATIVE, abs=least), name
    for moment, values in expected["metrics"].items():
        assert found["metrics"][moment] == pytest.approx(values, rel=RELATIVE)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for each in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            text = json.dumps(rerun(each, Path(temporary)), indent=1)
        (GOLDEN / f"{each}.json").write_text(text + "\n")
