"""Inception: the graph against another implementation's features on weights made by a recipe; its file is checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_di import zoo
from stylegan_di.dnnlib.download import cached_path
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.inception import WEIGHTS, Inception, resize_tf1
from stylegan_di.metrics.inception_script import SCRIPT, ScriptedInception

GOLDEN = Path(__file__).parent / "golden" / "metrics"
SHAPES: dict[str, list[int]] = json.loads((GOLDEN / "inception_random.json").read_text())["state_dict"]


def recipe(name: str, shape: list[int]) -> Tensor:
    """The golden values' weights, as their .json describes them."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    v = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        v = 0.5 + np.abs(v)
    elif name.endswith("bn.weight"):
        v = 1 + 0.1 * v
    elif name.endswith(("running_mean", "bias")):
        v = 0.1 * v
    else:
        v = v * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(v.astype(np.float32))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {name: recipe(name, shape) for name, shape in SHAPES.items()}


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        state = Inception().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == SHAPES


@pytest.mark.parametrize("case", ["a32", "c64x48", "b299"])
def test_features_at_every_depth(weights: dict[str, Tensor], case: str) -> None:
    golden = np.load(GOLDEN / "inception_random.npz")
    big = np.random.RandomState(2).randint(0, 256, (1, 3, 299, 299)).astype(np.uint8)
    images = torch.from_numpy(big if case == "b299" else golden[f"{case}/x"])
    for dtype in (torch.float32, torch.float64) if case == "c64x48" else (torch.float32,):
        cast = {name: v.to(dtype) if v.is_floating_point() else v for name, v in weights.items()}
        network = Inception.of_weights(cast)
        for name, value in network.depths(images).items():
            expected = golden[f"{case}/{name}"]
            assert value.dtype == dtype
            np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        expected = torch.from_numpy(golden[f"{case}/logits_unbiased"]).softmax(dim=1)
        probabilities = network.probabilities(network.depths(images)["2048"])
        torch.testing.assert_close(probabilities.double(), expected, rtol=1e-4, atol=1e-7)
        features = network(images)
        assert features.dtype == torch.float32
        np.testing.assert_array_equal(features, network.depths(images)["2048"].float())


def test_resizing_samples_where_tensorflow_1_does() -> None:
    """Output pixel i is at i * 2 / 299 of the input: the second pixel's value is reached at 299/2 and then held."""
    row = resize_tf1(torch.tensor([10.0, 20.0], dtype=torch.float64).expand(1, 1, 2, 2))[0, 0, 7]
    position = np.arange(299) * 2 / 299
    np.testing.assert_allclose(row, 10 + 10 * position.clip(max=1), rtol=1e-13)
    image = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_tf1(image), image, rtol=0, atol=0)


def test_another_file_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"missing\.pth: there is no such file"):
        open_extractor("inception", tmp_path / "missing.pth")
    path = tmp_path / "weights.pth"
    torch.save({"fc.bias": weights["fc.bias"]}, path)
    with pytest.raises(UserError, match=r"weights\.pth: its SHA-256 is .* not 6726825d"):
        open_extractor("inception", path)


def test_offline_it_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError) as caught:
        open_extractor("inception")
    path = cached_path(zoo.PYTORCH_FID + WEIGHTS)
    for part in (str(path), "pt_inception-2015-12-05-6726825d.pth", "--detector-file"):
        assert part in str(caught.value)


def test_folded_normalisation_gives_the_same_features(weights: dict[str, Tensor]) -> None:
    network = Inception.of_weights(weights)
    images = torch.from_numpy(np.random.RandomState(3).randint(0, 256, (2, 3, 32, 32)).astype(np.uint8))
    expected = network(images)
    fast = Inception.of_weights(weights).optimized()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(images), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


class Script(torch.nn.Module):
    """Stands for NVIDIA's TorchScript, which is called the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = img.float().mean(dim=[2, 3]).repeat(1, 683)[:, :2048] / 255
        if return_features:
            return features
        logits = features @ self.output.weight.T
        return (logits if no_output_bias else logits + self.output.bias).softmax(dim=1)


class BiasedScript(Script):
    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = img.float().mean(dim=[2, 3]).repeat(1, 683)[:, :2048] / 255
        return features if return_features else (features @ self.output.weight.T + self.output.bias).softmax(dim=1)


def save_script(path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(script), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(zoo.ENTRIES, SCRIPT, dataclasses.replace(zoo.ENTRIES[SCRIPT], sha256=sha256))


def test_nvidias_torchscript_is_called_as_their_metrics_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = Script()
    save_script(tmp_path / "inception.pt", plain, monkeypatch)
    network = open_extractor("inception", tmp_path / "inception.pt")
    assert isinstance(network, ScriptedInception)
    assert not any(p.requires_grad for p in network.parameters())
    images = torch.randint(0, 256, [3, 3, 8, 8], dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(images, return_features=True), rtol=0, atol=0)
        probabilities = network.probabilities(network(images))
        torch.testing.assert_close(probabilities, plain(images, no_output_bias=True))


def test_a_torchscript_that_behaves_otherwise_has_features_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "inception.pt"
    save_script(path, BiasedScript(), monkeypatch)
    network = open_extractor("inception", path)
    assert network(torch.zeros([1, 3, 8, 8], dtype=torch.uint8)).shape == (1, 2048)
    with pytest.raises(UserError, match="class probabilities"):
        Evaluator(["is50k"], None, 20, detector_file=path)


def test_a_torchscript_of_another_hash_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception.pt"
    save_script(path, Script(), monkeypatch)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for module, name in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, None)  # not to be called
    with pytest.raises(UserError, match="not 6726825d"):
        open_extractor("inception", path)


def test_the_published_torchscripts_hash() -> None:
    expected = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    assert zoo.ENTRIES["inception-2015-12-05.pt"].sha256 == expected
