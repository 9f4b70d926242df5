"""The Inception-v3 network by which FID is defined (Heusel et al. 2017, arXiv 1706.08500), TensorFlow's of 2015-12-05.

The network is Szegedy et al.'s (arXiv 1512.00567) with 1008 classes. Its weights have the names and shapes of the
published conversion to PyTorch. Images are resized to 299x299 as TensorFlow 1 does: pixel i samples at i W / 299.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

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
        self.Mixed_5b = Mixed35(192, pool=32)
        self.Mixed_5c = Mixed35(256, pool=64)
        self.Mixed_5d = Mixed35(288, pool=64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b = Mixed17(768, mid=128)
        self.Mixed_6c = Mixed17(768, mid=160)
        self.Mixed_6d = Mixed17(768, mid=160)
        self.Mixed_6e = Mixed17(768, mid=192)
        self.Mixed_7a = Reduce17(768)
        self.Mixed_7b = Mixed8(1280, pooling=average_3x3)
        self.Mixed_7c = Mixed8(2048, pooling=maximum_3x3)
        self.fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] -> features float32 [B,2048]."""
        return self.depths(images)["2048"].float()

    def probabilities(self, features: Tensor) -> Tensor:
        """See `Classifier`."""
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
    """A convolution, followed by batch normalisation and ReLU."""

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


def average_3x3(x: Tensor) -> Tensor:
    """Means of 3x3 neighbourhoods; pixels outside the image do not count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum_3x3(x: Tensor) -> Tensor:
    """Maxima of 3x3 neighbourhoods, which TensorFlow's network has in its very last block only."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Mixed35(nn.Module):
    """A block at 35x35, whose branches are 1x1, 5x5, 3x3 twice, and pooling."""

    def __init__(self, cin: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBN(cin, 64, 1)
        self.branch5x5_1 = ConvBN(cin, 48, 1)
        self.branch5x5_2 = ConvBN(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvBN(cin, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3, padding=1)
        self.branch_pool = ConvBN(cin, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_3x3(x)),
        ]
        return torch.cat(branches, dim=1)


class Reduce35(nn.Module):
    """The block that reduces 35x35 to 17x17."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBN(cin, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBN(cin, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed17(nn.Module):
    """A block at 17x17, whose branches are 1x1, 7x7 in two factors, the same twice, and pooling."""

    def __init__(self, cin: int, mid: int) -> None:
        super().__init__()
        row, column = partial(ConvBN, kernel=(1, 7), padding=(0, 3)), partial(ConvBN, kernel=(7, 1), padding=(3, 0))
        self.branch1x1 = ConvBN(cin, 192, 1)
        self.branch7x7_1 = ConvBN(cin, mid, 1)
        self.branch7x7_2 = row(mid, mid)
        self.branch7x7_3 = column(mid, 192)
        self.branch7x7dbl_1 = ConvBN(cin, mid, 1)
        self.branch7x7dbl_2 = column(mid, mid)
        self.branch7x7dbl_3 = row(mid, mid)
        self.branch7x7dbl_4 = column(mid, mid)
        self.branch7x7dbl_5 = row(mid, 192)
        self.branch_pool = ConvBN(cin, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_3x3(x))], dim=1)


class Reduce17(nn.Module):
    """The block that reduces 17x17 to 8x8."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvBN(cin, 192, 1)
        self.branch3x3_2 = ConvBN(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBN(cin, 192, 1)
        self.branch7x7x3_2 = ConvBN(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvBN(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvBN(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([single, double, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed8(nn.Module):
    """A block at 8x8, whose branches are 1x1, a fan of 1x3 and 3x1, 3x3 and the same fan, and `pooling`."""

    def __init__(self, cin: int, pooling: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pooling = pooling
        self.branch1x1 = ConvBN(cin, 320, 1)
        self.branch3x3_1 = ConvBN(cin, 384, 1)
        self.branch3x3_2a = ConvBN(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvBN(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvBN(cin, 448, 1)
        self.branch3x3dbl_2 = ConvBN(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvBN(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvBN(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBN(cin, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pooling(x)),
        ]
        return torch.cat(branches, dim=1)


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
    return inception_of(torch.load(zoo.published(WEIGHTS, path), map_location="cpu", weights_only=True)).optimized()


def inception_of(weights: Mapping[str, Tensor]) -> Inception:
    """Makes the network with these weights, in evaluation mode, without gradients."""
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
