"""A fake score that shares its teacher's weights and trains low-rank adapters of them.

Hu et al. 2021, arXiv 2106.09685: where a layer of the teacher has the weight W, the fake score's has W + B A, with B A
of rank r; A is random and B zero at the start, so that it starts as its teacher, and only A and B have gradients and
moments. PyTorch's own layers, which networks of diffusers are made of, get peft's; EDM's layers, which peft does not
know, compute with W + B A.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import parametrize

from stylegan_di.dnnlib.util import not_installed
from stylegan_di.interfaces import Denoiser
from stylegan_di.networks import edm2, edm_layers
from stylegan_di.teachers.wrapped import Wrapped

D = TypeVar("D", bound=Denoiser)
ADAPTER = ".lora_"  # in the names of adapters, as peft has them
EDM_LAYERS = (edm_layers.Linear, edm_layers.Conv2d, edm2.MPConv)


class AdaptedRows:
    """Which samples of a batch a network's adapters see: all, or inside `last` the last n alone."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.whole = 0  # samples of the batch

    @contextmanager
    def last(self, n: int) -> Iterator[None]:
        self.count = n
        try:
            yield
        finally:
            self.count = None

    def take(self, adapter: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Gives an adapter's A, whose hook this is, the last samples alone."""
        if self.count is None:
            return None
        self.whole = len(inputs[0])
        return (inputs[0][-self.count :],)

    def fill(self, adapter: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Puts zeros in front of what its B says, for the other samples."""
        if self.count is None:
            return output
        return torch.cat([output.new_zeros(self.whole - self.count, *output.shape[1:]), output])


def add_adapters(network: torch.nn.Module, rank: int) -> AdaptedRows:
    """Puts peft's adapters beside every matrix and convolution of PyTorch's, whose weights stay the same tensors.

    Returns what restricts the adapters to a part of a batch.

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
    rows = AdaptedRows()
    for name, module in network.named_modules():
        if name.endswith(".lora_A.default"):
            module.register_forward_pre_hook(rows.take)
        elif name.endswith(".lora_B.default"):
            module.register_forward_hook(rows.fill)
    return rows


class LowRank(torch.nn.Module):
    """W -> W + B A, for a weight W [out,...] of which a row has as many numbers as A."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        width = weight[0].numel()
        self.lora_A = Parameter(weight.new_empty([rank, width]).normal_(std=1 / math.sqrt(width)))
        self.lora_B = Parameter(weight.new_zeros([len(weight), rank]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.lora_B @ self.lora_A).view(weight.shape)


def adapt_edm_layers(network: torch.nn.Module, rank: int) -> None:
    """Makes every layer of EDM's networks compute with W + B A; their own weights stay the same tensors."""
    for module in list(network.modules()):
        if isinstance(module, EDM_LAYERS) and module.weight is not None:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank), unsafe=True)


def sharing_copy(denoiser: D) -> D:
    """A copy that has the very same parameters, buffers and space."""
    shared = [*denoiser.parameters(), *denoiser.buffers(), denoiser.space]
    return copy.deepcopy(denoiser, {id(each): each for each in shared})


class Adapted(Wrapped):
    """A denoiser with adapters, to which its parameters and its state are restricted.

    Args:
        denoiser: one whose network has got adapters; the weights that it shares are not to be trained.
    """

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
