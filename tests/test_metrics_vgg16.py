"""VGG-16 and LPIPS: against a plain computation with numpy on random weights, and the published files' names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from stylegan_di import zoo
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.vgg16 import LPIPS, VGG16, load_lpips, load_vgg16, lpips_of, vgg16_of
from tests.tiny_vgg16 import CONVOLUTIONS, HIDDEN, lin_recipe, recipe, tensors


def plain_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    maps = [sum(correlate(c, w, mode="constant") for c, w in zip(x, kernel, strict=True)) for kernel in weight]
    return np.stack(maps) + bias[:, None, None]


def plain_depths(image: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """An image [3,H,W] in 0..255 -> the activations before each pooling, and after the last one."""
    x = (image / 255 - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
    found = []
    for index in CONVOLUTIONS:
        if index >= 0:
            weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            x = np.maximum(plain_convolution(x, weight, bias), 0)
        else:
            found.append(x)
            c, h, w = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(c, h // 2, 2, w // 2, 2).max(axis=(2, 4))
    return found, x


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def test_features_against_numpy() -> None:
    images = random_images(2, 3, 224, 224)
    weights = recipe()
    expected = []
    for image in images:
        x = plain_depths(image, weights)[1].ravel()
        for index in (0, 3):
            x = np.maximum(weights[f"classifier.{index}.weight"] @ x + weights[f"classifier.{index}.bias"], 0)
        expected.append(x)
    features = vgg16_of(tensors(weights))(torch.from_numpy(images))
    assert (features.shape, features.dtype) == ((2, HIDDEN), torch.float32)
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-7)
    single = vgg16_of({name: value.float() for name, value in tensors(weights).items()})(torch.from_numpy(images))
    np.testing.assert_allclose(single, expected, atol=1e-5 * np.abs(expected).max())


def test_other_sizes_are_resized() -> None:
    network = vgg16_of(tensors(recipe()))
    small = torch.from_numpy(random_images(1, 3, 8, 8))
    resized = torch.nn.functional.interpolate(small.double(), size=[224, 224], mode="bilinear", antialias=True)
    torch.testing.assert_close(network(small), network(resized))
    flat = torch.full([1, 3, 300, 250], 77, dtype=torch.uint8)
    torch.testing.assert_close(network(flat), network(flat[:, :, :224, :224]))


@pytest.mark.parametrize("size", [(32, 32), (19, 26)])
def test_lpips_against_numpy(size: tuple[int, int]) -> None:
    """The distance as its authors define it: per depth, the mean over pixels of the weighted squared difference."""
    a, b = random_images(2, 3, *size, seed=1)
    weights, lin = recipe(), lin_recipe()
    expected = 0.0
    for depth, (x, y) in enumerate(zip(plain_depths(a, weights)[0], plain_depths(b, weights)[0], strict=True)):
        x, y = (v / (np.sqrt((v**2).sum(axis=0)) + 1e-10) for v in (x, y))
        w = lin[f"lin{depth}.model.1.weight"].reshape(-1, 1, 1)
        expected += (w * (x - y) ** 2).sum(axis=0).mean()
    lpips = lpips_of(vgg16_of(tensors(weights)), tensors(lin))
    one, two = lpips(torch.from_numpy(np.stack([a, b])))
    assert one.ndim == 1
    np.testing.assert_allclose((one - two).square().sum(), expected, rtol=1e-10)


def test_lpips_has_gradients() -> None:
    lpips = lpips_of(vgg16_of(tensors(recipe())), tensors(lin_recipe()))
    x = torch.from_numpy(random_images(1, 3, 16, 16)).double().requires_grad_()
    target = lpips(torch.from_numpy(random_images(1, 3, 16, 16, seed=3)))
    (gradient,) = torch.autograd.grad((lpips(x) - target).square().sum(), x)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = ((lpips(x + s) - target).square().sum() for s in (step, -step))
    assert float(ahead - behind) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-3)


def test_names_and_shapes_are_those_of_torchvisions_file() -> None:
    """138,357,544 parameters in all, of which the last layer's 4,097,000 are not used."""
    with torch.device("meta"):
        state = VGG16().state_dict()
    assert sum(value.numel() for value in state.values()) == 138_357_544 - 4_097_000
    assert {"features.28.weight", "features.0.bias", "classifier.0.weight", "classifier.3.bias"} <= state.keys()
    assert state["classifier.0.weight"].shape == (4096, 25088)
    assert len(state) == 2 * 15


def test_published_files_only(tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    torch.save(tensors(recipe()), path)
    with pytest.raises(UserError, match="397923af8e79cdbb"):
        load_vgg16(path)
    with pytest.raises(UserError, match="a78928a0af1e5f0f"):
        load_lpips(VGG16([1] * 5, 1), path)
    with pytest.raises(UserError, match=r"none\.pth"):
        load_vgg16(tmp_path / "none.pth")
    negative = {name: -value for name, value in tensors(lin_recipe()).items()}
    with pytest.raises(UserError, match="below 0"):
        lpips_of(VGG16([1] * 5, 1), negative)


def test_files_of_the_right_hash_are_used(tmp_path: Path, known_hash: None) -> None:
    torch.save(tensors(recipe()), tmp_path / "a.pth")
    torch.save(tensors(lin_recipe()), tmp_path / "b.pth")
    lpips = load_lpips(load_vgg16(tmp_path / "a.pth"), tmp_path / "b.pth")
    assert isinstance(lpips, LPIPS)
    assert not any(p.requires_grad for p in lpips.parameters())
    images = torch.from_numpy(random_images(1, 3, 16, 16))
    expected = lpips_of(vgg16_of(tensors(recipe())), tensors(lin_recipe()))(images)
    torch.testing.assert_close(lpips(images), expected, rtol=0, atol=0)


@pytest.fixture
def known_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table without hashes: files made here pass for the published ones."""
    for name, known in zoo.ENTRIES.items():
        monkeypatch.setitem(zoo.ENTRIES, name, dataclasses.replace(known, sha256=None))
