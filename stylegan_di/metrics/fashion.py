"""A small classifier of Fashion-MNIST, whose weights are shipped; its hidden layer is a yardstick that takes seconds.

Distances in its 64 features are called FD, never FID, and say something about Fashion-MNIST's classes only. It was
trained by tools/dev/train_fashion_classifier.py; the metadata in its file tell with what result.
"""

from __future__ import annotations

import os

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
    """Three convolutions, each with ReLU and 2x2 max pooling, then 64 hidden units and ten logits; 105k parameters."""

    name = "fashion"
    dim = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(24, 48, 3, padding=1)
        self.conv3 = torch.nn.Conv2d(48, 64, 3, padding=1)
        self.hidden = torch.nn.Linear(64 * 4 * 4, self.dim)
        self.output = torch.nn.Linear(self.dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> the hidden layer after ReLU, float32 [B,64]."""
        x = _prepare(images)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def logits(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] in 0..255 -> logits of the ten classes, float32 [B,10]."""
        return self.output(self(images))


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
