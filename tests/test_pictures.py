"""tools/dev/pictures.py: what is drawn is what was measured."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.dev import pictures

pytest.importorskip("matplotlib")


def test_levels_are_the_rows_that_train_nothing() -> None:
    results = [{"row": "before", "fd": 29.0}, {"row": "ikl", "seconds": 200, "fd": 14.0}]
    assert pictures.levels(results, "fd") == {"before": 29.0}


def test_a_curve_begins_when_the_teachers_samples_are_drawn() -> None:
    ends = [{"row": "a", "seed": seed, "seconds": 100.0 + seed, "fd": 3.0, "commands": [line]}
            for seed, line in ((1, "train.py --data=teacher:10000"), (2, "train.py"))]  # fmt: skip
    states = [{"row": "a", "seed": 1, "share": 0.5, "fd": 5.0}, {"row": "b", "seed": 1, "share": 0.5, "fd": 9.0}]
    drawn = 10000 * pictures.DRAWING
    assert pictures.curves(ends, states, "a", "fd") == [
        ([drawn + (101 - drawn) / 2, 101.0], [5.0, 3.0]), ([102.0], [3.0])
    ]  # fmt: skip


def test_the_sweep_of_refiners_is_in_the_order_of_sigma() -> None:
    results = [
        {"row": "refiner-2.5", "pixel_distance": 0.3, "fd": 3.0},
        {"row": "refiner-0.3", "pixel_distance": 0.1, "fd": 9.0},
        {"row": "refiner-0.3-frozen", "pixel_distance": 0.1, "fd": 10.0},
        {"row": "refiner-1.0-mended", "pixel_distance": 0.2, "fd": 7.0},
        {"row": "refiner-1.0-start", "before_fd_fashion": 16.0},
    ]
    assert pictures.sweep(results, "fd", False) == [(0.1, 9.0, 0.3), (0.3, 3.0, 2.5)]
    assert pictures.sweep(results, "fd", True) == [(0.1, 10.0, 0.3)]


def test_whole_steps_take_the_place_of_those_that_are_not_graphs() -> None:
    rows = [
        {"name": "fused FIR chain forward", "images_per_second": 9.0, "ratio": 3.0},
        {"name": "Diff-Instruct step, cifar, StyleGAN2", "images_per_second": 600.0, "ratio": 1.5},
        {"name": "Inception features", "images_per_second": 70.0, "ratio": 1.4},
    ]
    step = [
        {"row": "StyleGAN2, bf16, one CUDA graph", "images/s": 1000.0},
        {"row": "StyleGAN2, bf16, plain", "images/s": 400.0},
    ]
    assert pictures.rates({"rows": rows}) == [
        ("Diff-Instruct step, cifar, StyleGAN2", 600.0, 400.0), ("Inception features", 70.0, 50.0)
    ]  # fmt: skip
    graphs = {"rows": [{"row": "StyleGAN2, bf16, one CUDA graph", "images/s": 1300.0}]}  # measured again, later
    for later, rate in (({}, 1000.0), ({"graphs": graphs}, 1300.0)):
        assert pictures.rates({"benchmark-bf16": {"rows": rows}, "step": {"rows": step}, **later}) == [
            ("Inception features", 70.0, 50.0), ("Diff-Instruct step, cifar, StyleGAN2, one CUDA graph", rate, 400.0)
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["quality", "recall", "speed", "refiners"])
def test_the_pages_pictures_are_drawn_from_the_files_beside_it(name: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(pictures.main, [name, f"--out={tmp_path / 'a.svg'}"])
    assert made.exit_code == 0, made.output
    files = tmp_path / "a.svg", pictures.FIGURES / f"{name}.svg"
    drawn, kept = (re.findall(r">([^<]+)</text>", file.read_text()) for file in files)
    assert drawn == kept, f"draw it anew: python tools/dev/pictures.py {name}"
