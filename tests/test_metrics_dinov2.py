"""DINOv2: against a plain computation with numpy on random weights; its file is checked."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.dinov2 import DinoV2, dinov2_of
from stylegan_di.metrics.extractors import open_extractor

DIM, DEPTH, HEADS = 8, 2, 2


def recipe() -> dict[str, np.ndarray]:
    """Every tensor from RandomState(crc32(name)): norms' weights about 1, others of deviation 0.3; float64."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in DinoV2(DIM, DEPTH, HEADS).state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        found[name] = 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.3 * values
    return found


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, torch's choice."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def interpolation() -> np.ndarray:
    """[16,37]: bicubic weights at (i + 1/2) * 37 / 16.1 - 1/2, edges repeated."""
    matrix = np.zeros([16, 37])
    for i in range(16):
        position = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[i, np.clip(j, 0, 36)] += cubic(np.array(position - j))
    return matrix


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def plain(image: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """An image [3,224,224] in 0..255 -> the class token [DIM]."""
    x = (image / 255 - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    patches = x.reshape(3, 16, 14, 16, 14).transpose(1, 3, 0, 2, 4).reshape(256, -1)
    grid = w["pos_embed"][0, 1:].reshape(37, 37, DIM)
    positions = np.einsum("ia,jb,abc->ijc", interpolation(), interpolation(), grid).reshape(256, DIM)
    tokens = np.concatenate([
        w["cls_token"][0] + w["pos_embed"][0, :1], patches @ kernel.reshape(DIM, -1).T + bias + positions,
    ])  # fmt: skip
    for index in range(DEPTH):
        b = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blocks.{index}.")}
        y = layer_norm(tokens, b["norm1.weight"], b["norm1.bias"])
        q, k, v = np.split(y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"], 3, axis=1)
        parts = []
        for head in range(HEADS):
            own = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            parts.append(softmax(q[:, own] @ k[:, own].T / np.sqrt(DIM // HEADS), axis=1) @ v[:, own])
        y = np.concatenate(parts, axis=1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        tokens = tokens + b["ls1.gamma"] * y
        y = layer_norm(tokens, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        y = (y * (1 + erf(y / np.sqrt(2))) / 2) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        tokens = tokens + b["ls2.gamma"] * y
    return layer_norm(tokens[0], w["norm.weight"], w["norm.bias"])


def test_features_against_numpy() -> None:
    images = np.random.RandomState(0).randint(0, 256, [2, 3, 224, 224]).astype(np.uint8)
    weights = recipe()
    expected = np.stack([plain(image, weights) for image in images])
    network = dinov2_of({name: torch.from_numpy(value) for name, value in weights.items()}, heads=HEADS)
    features = network(torch.from_numpy(images))
    assert (features.shape, features.dtype) == ((2, DIM), torch.float32)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    single = dinov2_of({name: torch.from_numpy(value).float() for name, value in weights.items()}, heads=HEADS)
    np.testing.assert_allclose(single(torch.from_numpy(images)), expected, rtol=0, atol=1e-5)


def test_other_sizes_are_resized() -> None:
    network = dinov2_of({name: torch.from_numpy(value) for name, value in recipe().items()}, heads=HEADS)
    flat = torch.full([1, 3, 300, 250], 77, dtype=torch.uint8)
    torch.testing.assert_close(network(flat), network(flat[:, :, :224, :224]))


def test_the_published_size() -> None:
    """304,368,640 parameters, in 24 blocks of 14 tensors and 7 more."""
    with torch.device("meta"):
        state = DinoV2().state_dict()
    assert sum(value.numel() for value in state.values()) == 304_368_640
    assert len(state) == 24 * 14 + 7
    assert {"cls_token", "mask_token", "blocks.23.ls2.gamma", "blocks.0.attn.qkv.bias"} <= state.keys()
    assert state["pos_embed"].shape == (1, 1370, 1024)


def test_its_file_is_local_and_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--detector-file=dinov2=FILE.*dinov2_vitl14_pretrain\.pth"):
        open_extractor("dinov2")
    path = tmp_path / "weights.pth"
    weights = {name: torch.from_numpy(value) for name, value in recipe().items()}
    del weights["norm.bias"]
    for content in (weights, {"a": torch.zeros(1)}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(UserError, match="not the weights of DINOv2"):
            open_extractor("dinov2", path)
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match="not the weights of DINOv2"):
        open_extractor("dinov2", path)
    with pytest.raises(UserError, match="none"):
        open_extractor("dinov2", tmp_path / "none.pth")
