"""A fake score that shares its teacher's weights and trains low-rank adapters of them.

Hu et al. 2021, arXiv 2106.09685: where a layer of the teacher has the weight W, the fake score's has W + B A, with B A
of rank r; A is random and B zero at the start, so that it starts as its teacher, and only A and B have gradients and
moments. The layers are peft's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.dnnlib.util import not_installed
from stylegan_di.interfaces import Denoiser

ADAPTER = ".lora_"  # in the names of peft's adapters


def add_adapters(network: torch.nn.Module, rank: int) -> None:
    """Puts adapters beside every matrix and convolution of a network, whose own weights stay the same tensors.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise not_installed(f"--fake-rank={rank}", "peft", "peft") from None
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, module in network.named_modules() if isinstance(module, layers)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)


class Adapted(Denoiser):
    """A denoiser with adapters, to which its parameters and its state are restricted.

    Args:
        denoiser: one whose network `add_adapters` was given; the weights that it shares are not to be trained.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.training = denoiser.training
        for name in ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max", "space"):
            setattr(self, name, getattr(denoiser, name))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.denoiser.round_sigma(sigma)

    def compile_network(self) -> None:
        self.denoiser.compile_network()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Parameter]]:
        """The adapters: what an optimizer moves, `requires_grad_` switches, and gradients are averaged of."""
        return (entry for entry in super().named_parameters(*args, **kwargs) if ADAPTER in entry[0])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The adapters: the shared weights are the teacher's, whose file a run has."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if ADAPTER in name}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if strict and state_dict.keys() != self.state_dict().keys():
            raise ValueError("the state holds other adapters")
        return super().load_state_dict(state_dict, strict=False, assign=assign)
