"""Recall in each class, and how the classes of generated and of real images reach it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from stylegan_di.commands import reference as make_reference
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import dataset_features, extract, generated_images
from stylegan_di.metrics.manifolds import class_recall, precision_recall
from stylegan_di.metrics.statistics import load_stats, save_stats
from stylegan_di.metrics.table import need_labels
from stylegan_di.networks import stylegan2
from stylegan_di.random import SampleRandom
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tests.datasets import encode, labels_file, write
from tests.tiny import gan_networks, save_reference

CLASSES = 3
FIGURES = ["cr_fashion_mean", "cr_fashion_min"]


class Gan(StyleGAN2Student):
    """A tiny GAN that notes the labels it is given."""

    def __init__(self, classes: int = CLASSES) -> None:
        network = gan_networks(classes, resolution=16)["G_ema"]
        assert isinstance(network, stylegan2.Generator)
        super().__init__(network)
        self.labels: list[Tensor] = []

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        if labels is not None:
            self.labels.append(labels)
        return super().forward(z, labels, rng=rng)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of 36 images in three classes of other brightness."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    names = [f"{index:02}.png" for index in range(36)]
    pixels = [rng.integers(80, size=[16, 16], dtype=np.uint8) + 80 * (index % CLASSES) for index in range(36)]
    files = {name: encode(image.astype(np.uint8)) for name, image in zip(names, pixels, strict=True)}
    labels = labels_file([[name, index % CLASSES] for index, name in enumerate(names)])
    return write(tmp_path / "images", files | {"dataset.json": labels})


def clouds(num: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Features [num,3] of classes in turn, whose centres lie a little apart, and the classes."""
    labels = np.arange(num) % CLASSES
    x = np.random.default_rng(seed).normal(size=[num, 3]) + 2 * np.eye(3)[labels]
    return torch.from_numpy(x), labels


def test_it_is_the_recall_of_each_class() -> None:
    (reals, real_labels), (fakes, fake_labels) = clouds(90, 0), clouds(120, 1)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    expected = [precision_recall(reals[c::3], fakes[c::3], k=3)[1] for c in range(CLASSES)]
    found = class_recall(reals, real_labels, fakes[order], fake_labels[order.numpy()])
    assert found == pytest.approx((np.mean(expected), min(expected)))
    assert all(type(value) is float for value in found)
    assert class_recall(reals, real_labels, reals, real_labels) == (1, 1)


def test_a_class_that_collapses_is_noticed() -> None:
    """All images of class 1 become alike, and images of other classes stand in their places."""
    (reals, real_labels), (fakes, fake_labels) = clouds(900, 0), clouds(900, 1)
    collapsed = fakes.clone()
    collapsed[fake_labels == 1] = fakes[1] + 0.01 * fakes[fake_labels == 1]
    before, after = (class_recall(reals, real_labels, x, fake_labels) for x in (fakes, collapsed))
    assert before[1] > 0.8
    assert after[1] < 0.05
    assert after[0] == pytest.approx(before[0] * 2 / 3, abs=0.05)
    assert precision_recall(reals, collapsed)[1] > 0.85 * precision_recall(reals, fakes)[1]


def test_labels_must_fit() -> None:
    (reals, labels), (fakes, _) = clouds(30, 0), clouds(30, 1)
    with pytest.raises(UserError, match="of class 2 there are 10 and 0"):
        class_recall(reals, labels, fakes, np.arange(30) % 2)
    with pytest.raises(UserError, match="more than 3 real and generated images of each class; of class 0"):
        class_recall(reals, labels, fakes, np.where(np.arange(30) < 28, 1, 0))


@pytest.mark.parametrize("batch", [7, 64])
def test_classes_of_generated_images_are_those_they_were_made_of(batch: int) -> None:
    generator = Gan()
    images = generated_images(generator, num=20, batch=batch, seed=5)
    list(images)
    assert images.labels().dtype == np.int64
    np.testing.assert_array_equal(images.labels(), torch.cat(generator.labels).argmax(dim=1))
    assert generated_images(Gan(0), num=20, batch=batch).classes is None


def test_the_evaluator_is_its_parts(folder: Path) -> None:
    generator, classifier = Gan(), [open_extractor("fashion")]
    evaluator = Evaluator(["fd_fashion", "cr_fashion"], str(folder), 40, batch=16)
    results = evaluator(generator, seed=2)
    assert list(results) == ["fd_fashion", *FIGURES]
    images = generated_images(generator, num=40, batch=16, seed=2)
    fakes = extract(images, classifier, keep=["fashion"])["fashion"].features
    reals = dataset_features(ImageDataset(folder), classifier[0], keep_features=True)
    assert fakes is not None
    assert reals is not None
    assert reals.features is not None
    assert reals.labels is None  # the cache holds what all metrics share
    expected = class_recall(
        torch.from_numpy(reals.features), np.arange(36) % CLASSES, torch.from_numpy(fakes), images.labels()
    )
    assert [results[name] for name in FIGURES] == pytest.approx(expected)
    real = evaluator.measure_dataset(ImageDataset(folder, use_labels=True))
    assert [real[name] for name in FIGURES] == [1, 1]


def test_references_hold_labels_if_their_data_set_does(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "ref.npz"
    arguments = [f"--data={folder}", f"--dest={file}", "--features=float32"]
    result = CliRunner().invoke(make_reference.main, [*arguments, "--extractor=fashion"])
    assert result.exit_code == 0, result.output
    stats = load_stats(file)
    assert stats.labels is not None
    assert stats.labels.tolist() == [index % CLASSES for index in range(36)]
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["label_counts"].tolist() == [12, 12, 12]
    expected = Evaluator(["cr_fashion"], str(folder), 40)(Gan())
    assert Evaluator(["cr_fashion"], file, 40)(Gan()) == pytest.approx(expected)
    (folder / "dataset.json").unlink()
    CliRunner().invoke(make_reference.main, [f"--data={folder}", f"--dest={file}", "--extractor=fashion"])
    assert load_stats(file).labels is None


def test_references_are_inceptions_but_of_fashion(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        make_reference, "open_extractor", lambda name, _: opened.append(name) or open_extractor("fashion")
    )
    for data in (folder, folder.rename(tmp_path / "my-Fashion-32")):
        CliRunner().invoke(make_reference.main, [f"--data={data}", f"--dest={tmp_path / 'ref.npz'}"])
    assert opened == ["inception", "fashion"]
    (tmp_path / "file").write_text("")
    told = CliRunner().invoke(make_reference.main, [f"--data={folder}", f"--dest={tmp_path / 'file' / 'ref.npz'}"])
    assert f"--dest={tmp_path / 'file' / 'ref.npz'}: cannot write into {tmp_path / 'file'}" in told.output
    assert len(opened) == 2


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros(3), np.array([0, -1, 0]), np.zeros([3, 1], int)])
def test_damaged_labels_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    stats = extract(generated_images(Gan(), num=3, batch=3), [open_extractor("fashion")])["fashion"]
    save_stats(tmp_path / "ref.npz", dataclasses.replace(stats, labels=labels))
    with pytest.raises(UserError, match=r"ref\.npz: found contents that cannot be read \(labels are"):
        load_stats(tmp_path / "ref.npz")


def test_what_has_no_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    names = ["fd_fashion", "cr_fashion"]
    assert need_labels(names)
    assert not need_labels(["fd_fashion", "ppl2_wend"])
    with pytest.raises(UserError, match=r"ref\.npz holds no labels.*give a data set"):
        Evaluator(names, save_reference(tmp_path / "ref.npz"), 40)
    with pytest.raises(UserError, match="cr_fashion: images was opened without its labels"):
        Evaluator(names, ImageDataset(folder), 40)
    evaluator = Evaluator(names, ImageDataset(folder, use_labels=True), 40)
    for measure in (lambda: evaluator(Gan(0)), lambda: evaluator.measure_dataset(ImageDataset(folder))):
        with pytest.raises(UserError, match="cr_fashion: the images to measure have no classes"):
            measure()
    vectors = {f"{index:02}.png": [0.5, float(index)] for index in range(36)}
    (folder / "dataset.json").write_bytes(labels_file(list(map(list, vectors.items()))))
    with pytest.raises(UserError, match="the labels of images are vectors, not classes"):
        Evaluator(names, folder, 40)
