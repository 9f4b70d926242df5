"""The Inception-v3 network by which FID is defined (Heusel et al. 2017, arXiv 1706.08500), TensorFlow's of 2015-12-05.

The network is Szegedy et al.'s (arXiv 1512.00567) with 1008 classes. Its weights have the names and shapes of the
published conversion to PyTorch. Images are resized to 299x299 as TensorFlow 1 does: pixel i samples at i W / 299.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stylegan_di import zoo
from stylegan_di.interfaces import Classifier
from stylegan_di.metrics.inception_script import SCRIPT, ScriptedInception

RESOLUTION = 299
NUM_CLASSES = 1008
DIM = 2048
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


class Inception(Classifier):
    """Turns images into the 2048 features after the last pooling."""

    name = "inception"
    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3)
        self.Mixed_5b = mixed_35(192, pool=32)
        self.Mixed_5c = mixed_35(256, pool=64)
        self.Mixed_5d = mixed_35(288, pool=64)
        self.Mixed_6a = Mixed(
            288,
            [("branch3x3", 384, 3, 2)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
            [halved],
        )
        self.Mixed_6b = mixed_17(mid=128)
        self.Mixed_6c = mixed_17(mid=160)
        self.Mixed_6d = mixed_17(mid=160)
        self.Mixed_6e = mixed_17(mid=192)
        self.Mixed_7a = Mixed(
            768,
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
            [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)),
             ("branch7x7x3_4", 192, 3, 2)],
            [halved],
        )  # fmt: skip
        self.Mixed_7b = mixed_8(1280, pooling=average_3x3)
        self.Mixed_7c = mixed_8(2048, pooling=maximum_3x3)
        self.fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] -> features float32 [B,2048]."""
        return self.depths(images)["2048"].float()

    def probabilities(self, features: Tensor) -> Tensor:
        return F.linear(features, self.fc.weight).softmax(dim=1)

    def depths(self, images: Tensor) -> dict[str, Tensor]:
        """Spatial means of the activations at four depths, [B,64], [B,192], [B,768], [B,2048], by their width.

        Also 'logits' [B,1008], and 'logits_unbiased', which leave the bias out as the Inception score does.
        """
        x = resize_tf1(images.to(self.fc.weight.dtype))
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        depths = [x := F.max_pool2d(x, 3, stride=2)]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        depths.append(x := F.max_pool2d(x, 3, stride=2))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        depths.append(x := self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))))
        depths.append(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))))
        features = {str(x.shape[1]): x.mean(dim=[2, 3]) for x in depths}
        unbiased = F.linear(features["2048"], self.fc.weight)
        return features | {"logits_unbiased": unbiased, "logits": unbiased + self.fc.bias}

    def optimized(self) -> Inception:
        """Folds batch normalisation into the convolutions and makes weights channels_last, for speed; returns self."""
        for module in self.modules():
            if isinstance(module, ConvBN) and isinstance(module.bn, nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()
                module.conv.weight.data = module.conv.weight.data.contiguous(memory_format=torch.channels_last)
        return self


class ConvBN(nn.Module):
    bn: nn.BatchNorm2d | nn.Identity

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


average_3x3 = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum_3x3 = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)  # in TensorFlow's very last block only
halved = partial(F.max_pool2d, kernel_size=3, stride=2)


class Mixed(nn.Module):
    """A block of branches, whose outputs are concatenated.

    Args:
        cin: channels of the input.
        branches: each a list of steps: a pooling, or a convolution as (name in the file, channels, kernel, stride if
            not 1), which keeps the size at stride 1. The last step may be a list of several convolutions side by side.
    """

    def __init__(self, cin: int, *branches: Sequence[Any]) -> None:
        super().__init__()
        self.branches: list[list[list[Callable[[Tensor], Tensor]]]] = []
        for branch in branches:
            steps, width = [], cin
            for step in branch:
                parts = step if isinstance(step, list) else [step]
                steps.append([part if callable(part) else self.add(width, *part) for part in parts])
                width = width if callable(step) else parts[0][1]
            self.branches.append(steps)

    def add(self, cin: int, name: str, cout: int, kernel: int | tuple[int, int], stride: int = 1) -> ConvBN:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if stride == 1 else 0
        setattr(self, name, ConvBN(cin, cout, kernel, stride, padding))
        return getattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for *chain, last in self.branches:
            y = x
            for (step,) in chain:
                y = step(y)
            outputs += [part(y) for part in last]
        return torch.cat(outputs, dim=1)


def mixed_35(cin: int, pool: int) -> Mixed:
    """A block at 35x35, whose branches are 1x1, 5x5, 3x3 twice, and pooling."""
    return Mixed(
        cin,
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [average_3x3, ("branch_pool", pool, 1)],
    )


def mixed_17(mid: int) -> Mixed:
    """A block at 17x17, whose branches are 1x1, 7x7 in two factors, the same twice, and pooling."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        [("branch1x1", 192, 1)],
        [("branch7x7_1", mid, 1), ("branch7x7_2", mid, row), ("branch7x7_3", 192, column)],
        [("branch7x7dbl_1", mid, 1), ("branch7x7dbl_2", mid, column), ("branch7x7dbl_3", mid, row),
         ("branch7x7dbl_4", mid, column), ("branch7x7dbl_5", 192, row)],
        [average_3x3, ("branch_pool", 192, 1)],
    )  # fmt: skip


def mixed_8(cin: int, pooling: Callable[..., Tensor]) -> Mixed:
    """A block at 8x8, whose branches are 1x1, a fan of 1x3 and 3x1, 3x3 and the same fan, and `pooling`."""
    row, column = (1, 3), (3, 1)
    return Mixed(
        cin,
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)]],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
         [("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)]],
        [pooling, ("branch_pool", 192, 1)],
    )  # fmt: skip


def resize_tf1(images: Tensor) -> Tensor:
    """Floating-point images [B,C,H,W] -> [B,C,299,299], bilinear with samples at i H / 299 and i W / 299."""
    rows, columns = (_interpolation(size).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T


def _interpolation(size: int) -> Tensor:
    """The matrix [299,size], float64, that interpolates `size` pixels linearly; the last one is repeated beyond it."""
    position = torch.arange(RESOLUTION, dtype=torch.float64) * size / RESOLUTION
    left = position.floor().long()
    right = (left + 1).clamp(max=size - 1)
    fraction = (position - left)[:, None]
    pixels = torch.eye(size, dtype=torch.float64)
    return pixels[left] * (1 - fraction) + pixels[right] * fraction


def load_inception(path: str | os.PathLike[str] | None = None) -> Classifier:
    """Opens the network with the published weights, from a local copy or downloaded once (95 MB).

    A copy may be the state dict or NVIDIA's TorchScript. The latter is a program: it is run only if its hash is right.

    Raises:
        UserError: if the weights cannot be downloaded, or the file is another one.
    """
    if path is not None and Path(path).is_file():
        data = Path(path).read_bytes()
        if hashlib.sha256(data).hexdigest() == zoo.ENTRIES[SCRIPT].sha256:
            return ScriptedInception.load(data)
    weights = torch.load(zoo.published(WEIGHTS, path), map_location="cpu", weights_only=True)
    return Inception.of_weights(weights).optimized()
