"""A small classifier of Fashion-MNIST, whose weights are shipped; its hidden layer is a yardstick that takes seconds.

Distances in its 64 features are called FD, never FID, and say something about Fashion-MNIST's classes only. It was
trained by tools/dev/train_fashion_classifier.py; the metadata in its file tell with what result.
"""

from __future__ import annotations

import os
from itertools import pairwise

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan_di import zoo
from stylegan_di.dnnlib.untrusted import open_untrusted, untrusted
from stylegan_di.interfaces import FeatureExtractor

WEIGHTS = "fashion-classifier.safetensors"
RESOLUTION = 32
CLASSES = 10
MAX_BYTES = 1 << 24  # of a file of weights; the shipped one has 0.4 MB


class FashionClassifier(FeatureExtractor):
    """Six convolutions with batch norm, then 64 features of either sign, GELU and ten logits; 413k parameters.

    The features precede the nonlinearity, so that none is zero on most images, as a rectified layer's can be.
    """

    name = "fashion"
    dim = 64

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 48, 48, 96, 96, 128, 128)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
            for width_in, width_out in pairwise(widths)
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(width) for width in widths[1:])
        self.hidden = torch.nn.Linear(widths[-1], self.dim)
        self.output = torch.nn.Linear(self.dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> the hidden layer before its nonlinearity, float32 [B,64]."""
        x = F.pixel_unshuffle(_prepare(images), 2)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.gelu(norm(conv(x)))
            if index in (1, 3):
                x = F.max_pool2d(x, 2)
        return self.hidden(x.mean(dim=[2, 3]))

    def logits(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> logits of the ten classes, float32 [B,10]."""
        return self.output(F.gelu(self(images)))


def load_fashion_classifier(path: str | os.PathLike[str] | None = None) -> FashionClassifier:
    """Opens the classifier, with the shipped weights or those in the file `path`, as `open_extractor` does.

    Raises:
        UserError: if the file is missing or does not hold this classifier's weights.
    """
    source = zoo.resolve(WEIGHTS if path is None else path)
    network = FashionClassifier()
    remedy = "These are not the Fashion-MNIST classifier's weights; leave --detector-file out to use the shipped ones."
    with untrusted(str(source), source, remedy), open_untrusted(source, MAX_BYTES):
        network.load_state_dict(safetensors.torch.load_file(source))
    return network.eval().requires_grad_(False)


def _prepare(images: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> gray float32 [B,1,32,32] in [-1,1]; pads 28x28 with black as in training, else resizes."""
    x = images.float().mean(dim=1, keepdim=True)
    if x.shape[2:] == (28, 28):
        x = F.pad(x, [2, 2, 2, 2])
    elif x.shape[2:] != (RESOLUTION, RESOLUTION):
        x = F.interpolate(x, size=[RESOLUTION, RESOLUTION], mode="bilinear", antialias=True)
    return x / 127.5 - 1
