"""A fake score that shares its teacher's weights and trains low-rank adapters of them.

Hu et al. 2021, arXiv 2106.09685: where a layer of the teacher has the weight W, the fake score's has W + B A, with B A
of rank r; A is random and B zero at the start, so that it starts as its teacher, and only A and B have gradients and
moments. The layers are peft's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from stylegan_di.dnnlib.util import not_installed
from stylegan_di.interfaces import Denoiser

ADAPTER = ".lora_"  # in the names of peft's adapters
MOST_JOINED = 4  # images up to which one pass of a joined batch is faster (docs/measurements/adapters.md)


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
        """Before an adapter's A."""
        if self.count is None:
            return None
        self.whole = len(inputs[0])
        return (inputs[0][-self.count :],)

    def fill(self, adapter: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After its B: zeros for the other samples."""
        if self.count is None:
            return output
        return torch.cat([output.new_zeros(self.whole - self.count, *output.shape[1:]), output])


def add_adapters(network: torch.nn.Module, rank: int) -> AdaptedRows:
    """Puts adapters beside every matrix and convolution of a network, whose own weights stay the same tensors.

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


class Adapted(Denoiser):
    """A denoiser with adapters, to which its parameters and its state are restricted.

    Args:
        denoiser: one whose network `add_adapters` was given; the weights that it shares are not to be trained.
        teacher: the one that it shares them with.
        together: computes what `beside` returns for that teacher.
    """

    def __init__(
        self, denoiser: Denoiser, teacher: Denoiser, together: Callable[..., tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._shared = (teacher,)  # in a tuple, so that the teacher is no part of this module
        self._together = together
        self.training = denoiser.training
        for name in ("img_resolution", "img_channels", "label_dim", "sigma_min", "sigma_max", "space"):
            setattr(self, name, getattr(denoiser, name))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)

    def beside(
        self, teacher: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        if teacher not in self._shared or len(x) > MOST_JOINED:
            return None
        return self._together(x, sigma, labels)

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
