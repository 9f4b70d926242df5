"""The Fashion classifier: its shipped weights and reference, what it takes for images, how it is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch.nn.functional import gelu

from stylegan_di import zoo
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor
from stylegan_di.metrics.extractors import EXTRACTORS, open_extractor
from stylegan_di.metrics.fashion import WEIGHTS, FashionClassifier, load_fashion_classifier
from stylegan_di.metrics.statistics import load_stats
from tools.dev.train_fashion_classifier import measure_accuracy, train


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_extractor_of_its_name() -> None:
    classifier = open_extractor("fashion")
    assert isinstance(classifier, FeatureExtractor)
    assert (classifier.name, classifier.dim) == ("fashion", 64)
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    with pytest.raises(UserError, match="known are inception, vgg16, dinov2, fashion"):
        open_extractor("resnet")
    assert list(EXTRACTORS)[:4] == ["inception", "vgg16", "dinov2", "fashion"]


def test_features_of_32x32_28x28_and_gray() -> None:
    classifier = load_fashion_classifier()
    gray = images(5, 1, 28, 28)
    features = classifier(gray.expand(-1, 3, -1, -1))
    assert features.shape == (5, 64)
    assert features.dtype == torch.float32
    assert (features.std(dim=0) > 0.1).all()  # all of them tell images apart
    padded = torch.nn.functional.pad(gray, [2, 2, 2, 2]).expand(-1, 3, -1, -1)
    torch.testing.assert_close(classifier(padded), features, rtol=0, atol=0)
    torch.testing.assert_close(classifier.output(gelu(features)), classifier.logits(padded))


def test_other_sizes_are_resized() -> None:
    """Constant images stay so at any size, and channels count by their mean."""
    classifier = load_fashion_classifier()
    expected = classifier(torch.full([1, 3, 32, 32], 120, dtype=torch.uint8))
    for size in (16, 33, 64):
        unequal = torch.tensor([100, 120, 140], dtype=torch.uint8)[None, :, None, None].expand(1, 3, size, size)
        torch.testing.assert_close(classifier(unequal), expected)


def test_a_features_batch_does_not_matter() -> None:
    classifier = load_fashion_classifier()
    batch = images(9, 3, 32, 32)
    torch.testing.assert_close(torch.cat([classifier(x[None]) for x in batch]), classifier(batch), rtol=1e-5, atol=1e-5)


def test_the_shipped_files_say_what_they_are() -> None:
    with safe_open(zoo.ASSETS / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert float(metadata["accuracy"]) >= 0.9
    assert float(metadata["accuracy_16x16"]) >= 0.9
    assert "train_fashion_classifier.py" in metadata["command"]
    stats = load_stats(zoo.ASSETS / "fashion-reference.npz")
    assert (stats.num, stats.extractor, len(stats.mean)) == (10000, "fashion", 64)
    with np.load(zoo.ASSETS / "fashion-reference.npz", allow_pickle=False) as file:
        assert file["label_counts"].tolist() == [1000] * 10


def test_the_shipped_reference_agrees_with_its_own_features() -> None:
    """Features are kept as float16 (relative precision 5e-4), mean and covariance come from float32."""
    stats = load_stats(zoo.ASSETS / "fashion-reference.npz")
    assert stats.features is not None
    assert stats.features.dtype == np.float16
    wide = stats.features.astype(np.float64)
    np.testing.assert_allclose(wide.mean(axis=0), stats.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.cov(wide.T), stats.cov, rtol=0, atol=1e-3 * stats.cov.max())


def test_no_feature_is_dead() -> None:
    """Over the 10,000 test images each feature varies, the least not much less than the most."""
    stats = load_stats(zoo.ASSETS / "fashion-reference.npz")
    deviations = np.sqrt(np.diag(stats.cov))
    assert deviations.min() > 0.3 * deviations.max()


def test_the_reference_was_made_with_the_shipped_weights() -> None:
    """Its features, classified by the shipped last layer, have the accuracy that the weights' file states."""
    classifier = load_fashion_classifier()
    stats = load_stats(zoo.ASSETS / "fashion-reference.npz")
    assert stats.features is not None
    counts = classifier.output(gelu(torch.from_numpy(stats.features).float())).argmax(dim=1).bincount(minlength=10)
    assert ((counts > 800) & (counts < 1200)).all()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors"):
        load_fashion_classifier(path)
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"other\.safetensors"):
        load_fashion_classifier(path)


def test_training_learns_and_repeats_exactly() -> None:
    """Two classes, bright above and bright below; the same seed gives the same weights."""
    labels = torch.arange(512) % 2
    pictures = images(512, 1, 32, 32) // 4
    pictures[labels == 0, :, :16] += 128
    pictures[labels == 1, :, 16:] += 128
    pictures = pictures.expand(-1, 3, -1, -1)
    networks = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks.append(FashionClassifier())
        train(networks[-1], pictures, labels, epochs=6, seed=0)
    assert measure_accuracy(networks[0].eval(), pictures, labels) > 0.95
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(networks[1].state_dict()[name], value, rtol=0, atol=0)
