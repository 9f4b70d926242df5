"""NVIDIA's TorchScript of FID's Inception-v3 network, for users who have the file."""

from __future__ import annotations

import io
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Classifier

SCRIPT = "inception-2015-12-05.pt"
NUM_CLASSES = 1008
DIM = 2048


class ScriptedInception(Classifier):
    """Wraps NVIDIA's TorchScript and calls it as their metrics do; it resizes the images itself.

    Args:
        script: takes images, and return_features=True for features or no_output_bias=True for probabilities.
    """

    name = "inception"
    dim = DIM

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script
        self.weight = script.state_dict().get("output.weight", torch.empty(0))
        self.has_probabilities = self.weight.shape == (NUM_CLASSES, DIM)
        if self.has_probabilities:
            probe = torch.arange(3 * 32 * 32).remainder(256).to(torch.uint8).view(1, 3, 32, 32)
            expected = script(probe, no_output_bias=True)
            self.has_probabilities = torch.allclose(self.probabilities(self(probe)), expected, rtol=1e-3, atol=1e-6)

    @classmethod
    def load(cls, data: bytes) -> ScriptedInception:
        """Loads a TorchScript file, which executes it: the caller must have checked its hash."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch is about to drop TorchScript
            script = torch.jit.load(io.BytesIO(data), map_location="cpu")
        with torch.no_grad():
            return cls(script.eval()).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B,3,H,W] -> features float32 [B,2048]."""
        return self.script(images, return_features=True)

    def probabilities(self, features: Tensor) -> Tensor:
        """See `Classifier`.

        Raises:
            UserError: if the script's probabilities are not those of its features and its output.weight.
        """
        if not self.has_probabilities:
            raise UserError(
                f"{SCRIPT}: its class probabilities are not those of its features and its output.weight; "
                "for the Inception score leave --detector-file out, or give the state dict"
            )
        return F.linear(features, self.weight.to(features)).softmax(dim=1)
