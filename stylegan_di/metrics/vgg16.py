"""VGG-16 (Simonyan & Zisserman 2015, arXiv 1409.1556, configuration D), and LPIPS distances in it (arXiv 1801.03924).

Precision and recall compare images by the second hidden layer; path lengths and projections compare them by LPIPS:

    d(a, b) = sum over five depths of the mean over pixels of sum_c w_c (u_c(a) - u_c(b))^2

where u is an activation divided by its length over the channels c, and w >= 0 are learned. `LPIPS` gives each image one
vector, sqrt(w_c / pixels) u_c over all depths; d is the squared Euclidean distance between two of them.

The weights have the names and shapes of torchvision's and the LPIPS authors' files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_di import zoo
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import FeatureExtractor

RESOLUTION = 224  # the hidden layers were trained on images of this side
CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)  # number at each depth
VGG_WEIGHTS = "vgg16-397923af.pth"
LPIPS_WEIGHTS = "lpips-vgg.pth"

# Mean and standard deviation of ImageNet's pixels, in 0..255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_EPSILON = 1e-10  # added to the length of an activation


class VGG16(FeatureExtractor):
    """Turns images into the activations of the second hidden layer, after ReLU.

    Args:
        channels: number of channels at each of the five depths.
        hidden: width of the two hidden layers.
    """

    name = "vgg16"

    def __init__(self, channels: Sequence[int] = CHANNELS, hidden: int = 4096) -> None:
        super().__init__()
        self.dim = hidden
        layers: list[nn.Module] = []
        width = 3
        for depth, out in enumerate(channels):
            for _ in range(CONVOLUTIONS[depth]):
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(width * 7 * 7, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W], resized to 224x224 (bilinear, antialiased) -> features float32 [B,4096]."""
        x = images.to(self.features[0].weight.dtype)  # type: ignore[arg-type]
        if x.shape[2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, size=[RESOLUTION, RESOLUTION], mode="bilinear", antialias=True)
        return self.classifier(self.features(normalise(x)).flatten(1)).float()

    def depths(self, images: Tensor) -> list[Tensor]:
        """The activations before each pooling, [B,C,H,W], [B,C,H/2,W/2], ..., of images in 0..255 at their own size.

        images: uint8, or floating-point and then differentiable; [B,3,H,W], 16 pixels or more.
        """
        x = normalise(images.to(self.features[0].weight.dtype))  # type: ignore[arg-type]
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
                if len(found) == len(CONVOLUTIONS):
                    break
            x = layer(x)
        return found


class LPIPS(nn.Module):
    """Turns images into vectors whose squared distances are LPIPS; weights: w for each depth, [C], none below 0."""

    def __init__(self, vgg: VGG16, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.vgg = vgg
        for depth, weight in enumerate(weights):
            self.register_buffer(f"root{depth}", weight.sqrt())

    def forward(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in 0..255, uint8 or floating-point; 16 pixels or more -> vectors [B,n], differentiable."""
        parts = []
        for depth, x in enumerate(self.vgg.depths(images)):
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
            root = self.get_buffer(f"root{depth}").to(x)
            parts.append((unit * root[:, None, None] / (x.shape[2] * x.shape[3]) ** 0.5).flatten(1))
        return torch.cat(parts, dim=1)


def normalise(images: Tensor) -> Tensor:
    """Floating-point images [B,3,H,W] in 0..255 -> normalised by ImageNet's mean and standard deviation."""
    return (images - images.new_tensor(_MEAN)[:, None, None]) / images.new_tensor(_STD)[:, None, None]


def load_vgg16(path: str | os.PathLike[str] | None = None) -> VGG16:
    """Opens the network with torchvision's weights, from a local copy of the file or downloaded once (553 MB).

    Raises:
        UserError: if the weights cannot be downloaded, or the file is another one.
    """
    file = zoo.published(VGG_WEIGHTS, path)
    return vgg16_of(torch.load(file, map_location="cpu", weights_only=True))


def vgg16_of(weights: Mapping[str, Tensor]) -> VGG16:
    """Makes the network with these weights, in evaluation mode, without gradients; the last layer is left out."""
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.6.")}
    channels = [len(kept[f"features.{index}.weight"]) for index in (0, 5, 10, 17, 24)]
    return VGG16.of_weights(kept, channels=channels, hidden=len(kept["classifier.3.weight"]))


def load_lpips(vgg: VGG16, path: str | os.PathLike[str] | None = None) -> LPIPS:
    """Opens LPIPS 0.1 on the network `vgg`, with the authors' weights, from a local copy or downloaded once (7 kB).

    Raises:
        UserError: if the weights cannot be downloaded, or the file is another one.
    """
    return lpips_of(vgg, torch.load(zoo.published(LPIPS_WEIGHTS, path), map_location="cpu", weights_only=True))


def lpips_of(vgg: VGG16, weights: Mapping[str, Tensor]) -> LPIPS:
    """Makes LPIPS with these weights ('lin0.model.1.weight' [1,C,1,1], ...), in evaluation mode, without gradients.

    Raises:
        UserError: if a weight is below 0.
    """
    flat = [weights[f"lin{depth}.model.1.weight"].flatten() for depth in range(len(CONVOLUTIONS))]
    if any(weight.min() < 0 for weight in flat):
        raise UserError("the file of LPIPS's weights holds values below 0: it is damaged; fetch it again.")
    return LPIPS(vgg, flat).eval().requires_grad_(False)
