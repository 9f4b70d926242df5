"""The evaluator: what is drawn, what is cached, what is compared, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.images import to_rgb, to_uint8
from stylegan_di.interfaces import Classifier, Denoiser, FeatureExtractor, Generator
from stylegan_di.metrics import evaluate, features
from stylegan_di.metrics.evaluate import Evaluator, mean_and_spread
from stylegan_di.metrics.extractors import EXTRACTORS, open_extractor
from stylegan_di.metrics.features import (
    batch_size,
    dataset_features,
    dataset_images,
    evaluation_mode,
    extract,
    generated_images,
)
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.inception_score import inception_score
from stylegan_di.metrics.manifolds import precision_recall
from stylegan_di.metrics.path_length import Path as LatentPath
from stylegan_di.metrics.path_length import path_distances, trimmed_mean
from stylegan_di.metrics.statistics import load_stats, save_stats
from stylegan_di.metrics.table import METRICS
from stylegan_di.metrics.vgg16 import lpips_of, vgg16_of
from stylegan_di.networks import stylegan2
from stylegan_di.random import SampleRandom
from stylegan_di.sampling.diffusion_sampler import DiffusionSampler
from stylegan_di.students.stylegan2 import StyleGAN2Student
from tests.tiny import gan_networks
from tests.tiny_vgg16 import lin_recipe, recipe, tensors

REFERENCE = "fashion-reference.npz"  # a known name: the shipped one
PAIR = ("fd_fashion", "pr_fashion")


class Blobs(Generator):
    """Gray noise about a level that depends on the class; elementwise, hence exactly the same in any batch."""

    def __init__(self, label_dim: int = 10, level: float = 0.0) -> None:
        super().__init__()
        self.network = torch.nn.Dropout(0.9)
        self.img_resolution, self.img_channels, self.label_dim, self.level = 32, 1, label_dim, level
        self.labels: list[Tensor] = []

    def sample_latents(self, n: int, *, rng: SampleRandom) -> Tensor:
        return rng.normal(1, 32, 32)

    def forward(self, z: Tensor, labels: Tensor | None = None, *, rng: SampleRandom | None = None) -> Tensor:
        assert rng is not None  # the noise inside is drawn for each sample
        assert (labels is None) == (self.label_dim == 0)
        if labels is not None:
            assert labels.shape == (len(z), self.label_dim)
            self.labels.append(labels)
            z = z + labels.argmax(dim=1).reshape(-1, 1, 1, 1)
        return self.network((z - 4) / 8 + self.level)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of twelve RGB images, and a cache of its own."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "images"
    path.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=[12, 32, 32, 3], dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{index:02}.png")
    return path


@pytest.mark.parametrize("label_dim", [0, 10])
def test_samples_depend_on_the_seed_and_not_on_the_batch(label_dim: int) -> None:
    def images(batch: int, seed: int, num: int = 20) -> Tensor:
        return torch.cat(list(generated_images(Blobs(label_dim), num=num, batch=batch, seed=seed)))

    first = images(20, 5)
    assert first.shape == (20, 3, 32, 32)
    assert first.dtype == torch.uint8
    for batch in (1, 7, 64):
        torch.testing.assert_close(images(batch, 5), first, rtol=0, atol=0)
    torch.testing.assert_close(images(7, 5, num=9), first[:9], rtol=0, atol=0)
    assert not torch.equal(images(20, 6), first)


def test_the_noise_inside_is_drawn_for_each_sample() -> None:
    network = gan_networks(c_dim=0)["G_ema"]
    assert isinstance(network, stylegan2.Generator)
    for name, parameter in network.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1)
    generator = StyleGAN2Student(network)
    rng = SampleRandom(5, "metrics", 0, range(3))
    z = generator.sample_latents(3, rng=rng)
    expected = to_rgb(to_uint8(generator(z, rng=rng)))
    found = generated_images(generator, num=3, batch=2, seed=5)
    torch.testing.assert_close(torch.cat(list(found)), expected, rtol=0, atol=1)
    assert not torch.equal(expected, to_rgb(to_uint8(generator(z))))


def test_large_images_are_made_fewer_at_a_time() -> None:
    assert [batch_size(side) for side in (16, 128, 256, 512, 1024, 2048)] == [64, 64, 32, 8, 2, 1]
    generator = Blobs()
    Evaluator(PAIR, REFERENCE, 70)(generator)
    assert [len(labels) for labels in generator.labels] == [64, 6]


def test_labels_are_uniform() -> None:
    generator = Blobs()
    list(generated_images(generator, num=3000, batch=500))
    counts = torch.cat(generator.labels).sum(dim=0)
    assert counts.sum() == 3000
    assert ((counts - 300).abs() < 5 * 300**0.5).all()


def test_generators_are_measured_in_evaluation_mode_and_keep_theirs() -> None:
    generator = Blobs()
    generator.eval()
    expected = generated_images(generator, num=2, batch=2)[0]
    generator.network.train()  # Dropout would show
    torch.testing.assert_close(generated_images(generator, num=2, batch=2)[0], expected, rtol=0, atol=0)
    assert (generator.training, generator.network.training) == (False, True)
    with pytest.raises(RuntimeError), evaluation_mode(generator):
        raise RuntimeError
    assert (generator.training, generator.network.training) == (False, True)


def test_images_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        generated_images(Blobs(level=float("nan")), num=2, batch=2)[0]


def test_a_denoiser_is_measured_through_its_sampler() -> None:
    """The ideal denoiser of images that are all 0.25: whatever the latents, that is what comes out."""

    class Constant(Denoiser):
        img_resolution, img_channels, label_dim, sigma_min, sigma_max = 8, 3, 0, 0.0, float("inf")

        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.full_like(x, 0.25)

    images = torch.cat(list(generated_images(DiffusionSampler(Constant(), steps=4), num=3, batch=2)))
    torch.testing.assert_close(images, torch.full([3, 3, 8, 8], int(0.25 * 127.5 + 128), dtype=torch.uint8))


def test_the_evaluator_is_its_parts() -> None:
    generator = Blobs()
    stats = load_stats(zoo.resolve(REFERENCE))
    assert stats.features is not None
    images = generated_images(generator, num=50, batch=50, seed=3)
    fakes = extract(images, [open_extractor("fashion")], keep=["fashion"])["fashion"]
    assert fakes.features is not None
    reals = torch.from_numpy(stats.features).float()
    expected = (
        frechet_distance(fakes.mean, fakes.cov, stats.mean, stats.cov),
        *precision_recall(reals, torch.from_numpy(fakes.features)),
    )
    results = Evaluator(PAIR, REFERENCE, 50, batch=16)(generator, seed=3)
    assert list(results) == ["fd_fashion", "pr_fashion_precision", "pr_fashion_recall"]
    np.testing.assert_allclose(list(results.values()), expected, rtol=1e-6)
    assert all(type(value) is float for value in results.values())
    json.dumps(results)


def test_noise_is_far_from_clothes() -> None:
    """Real training images are at 0.2 (60,000 of them) to 0.4 (10,000)."""
    assert Evaluator(["fd_fashion"], REFERENCE, 60)(Blobs())["fd_fashion"] > 50


def test_fid_compares_with_edms_files_by_the_detector_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Inception, which would need its published weights: the mean colour of each image."""

    class MeanColour(FeatureExtractor):
        name, dim = "inception", 3

        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=[2, 3])

    opened: list[object] = []
    monkeypatch.setitem(EXTRACTORS, "inception", lambda path: opened.append(path) or MeanColour())
    generator = Blobs(label_dim=0)
    levels = torch.cat(list(generated_images(generator, num=30, batch=30))).double().mean(dim=[2, 3]).numpy()
    np.savez(tmp_path / "ref.npz", mu=levels.mean(axis=0) + 2, sigma=np.cov(levels.T))
    evaluator = Evaluator(["fid50k_full"], tmp_path / "ref.npz", 30, detector_file="weights.pth")
    assert opened == ["weights.pth"]
    assert evaluator(generator) == {"fid50k_full": pytest.approx(3 * 2**2, rel=1e-5)}


def test_images_of_any_size_are_resized_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the twelve images, some enlarged fourfold to an oblong: its mean colour stays, so the distance is 0."""

    class MeanColour(FeatureExtractor):
        name, dim = "inception", 3

        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=[2, 3])

    monkeypatch.setitem(EXTRACTORS, "inception", lambda path: MeanColour())
    mixed = folder.parent / "mixed"
    mixed.mkdir()
    for index, path in enumerate(sorted(folder.iterdir())):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(pixels.repeat(1 + index % 2, axis=0).repeat(1 + index % 3, axis=1)).save(mixed / path.name)
    found = Evaluator(["fid50k_full"], folder, 50).measure_dataset(ImageDataset(mixed, any_size=True))
    assert found["fid50k_full"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(UserError, match=r"images must be square|all must have one shape"):
        Evaluator(["fid50k_full"], folder, 50).measure_dataset(ImageDataset(mixed))
    with pytest.raises(UserError, match="--any-size: spectrum does not resize images"):
        Evaluator(["spectrum"], ImageDataset(mixed, any_size=True), 50)


def test_legacy_metrics_count_fewer_reals_and_mirrored_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored = ImageDataset(folder, xflip=True)
    asked: list[int | None] = []
    monkeypatch.setitem(EXTRACTORS, "inception", lambda path: open_extractor("fashion"))
    monkeypatch.setattr(
        evaluate, "dataset_features", lambda *args, num, **kwargs: asked.append(num) or dataset_features(*args, num=num)
    )
    for name in ("fid50k_full", "fid50k"):
        Evaluator([name], mirrored, 4)
        Evaluator([name], ImageDataset(folder), 4)
    assert asked == [12, 12, 24, 12]
    monkeypatch.setitem(METRICS, "fid50k", dataclasses.replace(METRICS["fid50k"], max_reals=7))
    Evaluator(["fid50k"], mirrored, 4)
    assert asked[-1] == 7


def test_the_inception_score_needs_no_reference_and_takes_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    class Brightness(Classifier):
        name, dim = "inception", 1

        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean(dim=[1, 2, 3])[:, None]

        def probabilities(self, features: Tensor) -> Tensor:
            assert features.dtype == torch.float32
            return torch.cat([features, 255 - features], dim=1) / 255

    monkeypatch.setitem(EXTRACTORS, "inception", lambda path: Brightness())
    results = Evaluator(["is50k"], None, 30, batch=8)(Blobs(), seed=2)
    light = torch.cat(list(generated_images(Blobs(), num=30, batch=30, seed=2))).float().mean(dim=[1, 2, 3]) / 255
    expected = inception_score(torch.stack([light, 1 - light], dim=1).numpy())
    assert list(results) == ["is50k_mean", "is50k_std"]
    assert tuple(results.values()) == pytest.approx(expected, rel=1e-6)


def test_path_lengths_and_other_metrics_in_the_order_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow VGG-16 stands for the published one."""
    vgg = vgg16_of({name: value.float() for name, value in tensors(recipe()).items()})
    lpips = lpips_of(vgg, {name: value.float() for name, value in tensors(lin_recipe()).items()})
    opened: list[object] = []
    monkeypatch.setitem(EXTRACTORS, "vgg16", lambda path: opened.append(path) or vgg)
    monkeypatch.setattr(evaluate, "load_lpips", lambda network, path: opened.append((network, path)) or lpips)
    network = gan_networks(resolution=16)["G_ema"]
    assert isinstance(network, stylegan2.Generator)
    generator = StyleGAN2Student(network)
    evaluator = Evaluator(["fd_fashion", "ppl2_wend"], REFERENCE, 6, batch=4, detector_file="vgg16=a.pth,lpips=b.pth")
    assert opened == ["a.pth", (vgg, "b.pth")]
    results = evaluator(generator, seed=1)
    assert list(results) == ["fd_fashion", "ppl2_wend"]
    path = LatentPath("w", "end", crop=False)
    expected = trimmed_mean(path_distances(generator, lpips, path, num=6, batch=4, seed=1))
    assert results["ppl2_wend"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0
    with pytest.raises(UserError, match="ppl2_wend: path lengths are for a GAN, not for images"):
        Evaluator(["ppl2_wend"], None, 6).measure_dataset(ImageDataset(folder))


def test_mean_and_spread_over_blocks() -> None:
    mean, spread = mean_and_spread([{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0}])
    assert mean == {"a": 3.0, "b": 5.0}
    assert spread == {"a": pytest.approx(7**0.5), "b": 0.0}
    assert mean_and_spread([{"a": 1.0}]) == ({"a": 1.0}, {"a": 0.0})


def test_a_data_set_measures_the_same_from_itself_and_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ImageDataset(folder)
    first = Evaluator(PAIR, dataset, 12, batch=5).measure_dataset(dataset)
    assert first == {"fd_fashion": pytest.approx(0, abs=1e-8), "pr_fashion_precision": 1, "pr_fashion_recall": 1}
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", None)  # not to be called
        cached = dataset_features(ImageDataset(folder), open_extractor("fashion"), keep_features=True)
    assert cached.num == 12
    again = Evaluator(PAIR, str(folder), 12, batch=7).measure_dataset(dataset)
    assert again["fd_fashion"] == pytest.approx(0, abs=1e-6)


def test_the_cache_tells_data_sets_and_weights_apart(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "metrics"
    classifier = open_extractor("fashion")

    def files_after(dataset: ImageDataset, **options: bool) -> int:
        dataset_features(dataset, classifier, **options)
        return len(list(cache.iterdir()))

    assert files_after(ImageDataset(folder)) == 1
    assert files_after(ImageDataset(folder)) == 1
    assert files_after(ImageDataset(folder), keep_features=True) == 2
    assert files_after(ImageDataset(folder, xflip=True)) == 3
    assert files_after(ImageDataset(folder, max_size=5)) == 4
    Image.fromarray(np.zeros([32, 32, 3], dtype=np.uint8)).save(folder / "00.png")
    assert files_after(ImageDataset(folder)) == 5
    next(classifier.parameters()).data.add_(1)
    assert files_after(ImageDataset(folder)) == 6


def test_a_cache_that_cannot_be_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(folder / "00.png"))
    with pytest.raises(UserError, match="DNNLIB_CACHE_DIR"):
        dataset_features(ImageDataset(folder), open_extractor("fashion"))


def test_only_the_first_images_of_a_data_set_count(folder: Path) -> None:
    dataset = ImageDataset(folder)
    five = torch.cat(list(dataset_images(dataset, num=5, batch=3)))
    np.testing.assert_array_equal(five, np.stack([dataset[index][0] for index in range(5)]))
    done: list[tuple[str, int, int]] = []
    Evaluator(["fd_fashion"], REFERENCE, 5, batch=3, report=lambda *args: done.append(args)).measure_dataset(dataset)
    assert done == [("Images", 3, 5), ("Images", 5, 5)]


def test_misfits_are_refused(folder: Path, tmp_path: Path) -> None:
    stats = load_stats(zoo.resolve(REFERENCE))
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "bare.npz", mu=stats.mean, sigma=stats.cov, extractor="fashion")
    for metrics, reference, detector_file, message in (
        (["fid"], REFERENCE, None, "no metric 'fid'; known are fid50k_full"),
        (["fd_fashion"], None, None, "--data or --ref"),
        (["fd_fashion"], tmp_path / "edm.npz", None, "holds inception features of 2048"),
        (["pr_fashion"], tmp_path / "bare.npz", None, r"bare\.npz holds no features"),
        (["fd_fashion"], REFERENCE, "inception.pth", "--detector-file=inception.pth"),
        (["fd_fashion"], tmp_path / "none.zip", None, r"none\.zip"),
    ):
        with pytest.raises(UserError, match=message):
            Evaluator(metrics, reference, 10, detector_file=detector_file)
    assert Evaluator(["fd_fashion"], tmp_path / "bare.npz", 10).references["fd_fashion"].num is None


def test_references_of_other_extractors_are_refused(tmp_path: Path) -> None:
    stats = load_stats(zoo.resolve(REFERENCE))
    save_stats(tmp_path / "other.npz", type(stats)(stats.mean, stats.cov, extractor="inception"))
    with pytest.raises(UserError, match="holds inception features of 64 dimensions"):
        Evaluator(["fd_fashion"], tmp_path / "other.npz", 10)
