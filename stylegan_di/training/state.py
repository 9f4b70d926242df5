"""What a training is made of: the networks that move, their optimizers, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylegan_di.data.augment_edm import AugmentPipe as EDMAugmentPipe
from stylegan_di.dnnlib.util import UserError
from stylegan_di.interfaces import Denoiser
from stylegan_di.random import SampleRandom, stream
from stylegan_di.torch_utils import distributed

COUNTERS = ("cur_nimg", "cur_tick", "cur_step", "snapshot_due", "history", "returns")  # of TrainState, for JSON


@dataclass
class TrainState:
    """Everything that changes during a training."""

    model: torch.nn.Module  # a Denoiser (edm) or a Generator (gan, di)
    ema: torch.nn.Module
    optimizers: dict[str, torch.optim.Optimizer]  # by role: model, fake_score, discriminator
    fake_score: Denoiser | None = None
    discriminator: torch.nn.Module | None = None
    augment_pipe: torch.nn.Module | EDMAugmentPipe | None = None  # of the discriminator, or of a denoiser's images
    pl_mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    cur_nimg: int = 0
    cur_tick: int = 0
    cur_step: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)  # (step, network) of updates left out
    undecided: list[tuple[int, str, Tensor]] = field(default_factory=list)  # whether left out, not yet read
    snapshot_due: bool = False  # whether the next thing to do is a snapshot
    history: dict[str, list[float]] = field(default_factory=dict)  # of watched statistics, tick by tick
    returns: int = 0  # to the best snapshot

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages and the optimizers' moments: 'ema.<key>', 'optimizer.model.<index>.exp_avg', 'pl_mean'.

        Where weights are spread over processes they are gathered, so all processes must call this.
        """
        found = {"pl_mean": self.pl_mean}
        for role, module in self.modules().items():
            found |= {f"{role}.{key}": distributed.whole(value) for key, value in module.state_dict().items()}
        for role, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                for name, value in moments.items():
                    found[f"optimizer.{role}.{index}.{name}"] = distributed.whole(value)
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` gave; other names are left alone.

        Raises:
            UserError: if the networks are others.
        """
        for role, module in self.modules().items():
            own, weights = module.state_dict(), below(role, tensors)
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
                raise UserError(f"--resume: the state's {role} is not a network of this version and these options")
            module.load_state_dict({key: distributed.spread_like(weights[key], own[key]) for key in own})
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_optimizer_state(optimizer, below(f"optimizer.{role}", tensors)))
        self.pl_mean = tensors["pl_mean"].to(self.pl_mean.device)

    def note_skipped(self) -> None:
        """Reads from the device, at once, which updates were left out since the last time, for `skipped`."""
        if self.undecided:
            flags = torch.stack([flag for _, _, flag in self.undecided]).tolist()
            self.skipped += [(step, role) for (step, role, _), flag in zip(self.undecided, flags, strict=True) if flag]
            self.undecided.clear()

    def values(self) -> dict[str, Any]:
        """What is no tensor, for JSON."""
        self.note_skipped()
        return {name: getattr(self, name) for name in COUNTERS} | {"skipped": [list(entry) for entry in self.skipped]}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Takes over what `values` gave."""
        for name in COUNTERS:
            setattr(self, name, values[name])
        self.skipped = [(step, role) for step, role in values["skipped"]]

    def average_w_avg(self) -> None:
        """Averages the generator's mean w over the processes, each of which follows its own samples."""
        distributed.average(buffer for name, buffer in self.model.named_buffers() if name.endswith("w_avg"))

    def modules(self) -> dict[str, torch.nn.Module]:
        """The networks there are, by role."""
        roles = ("model", "ema", "fake_score", "discriminator", "augment_pipe")
        return {role: module for role in roles if isinstance(module := getattr(self, role), torch.nn.Module)}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with 'prefix.', by the rest of their names."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _optimizer_state(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> dict[str, Any]:
    """An optimizer's state dict from '<index>.<name>' -> tensor; its rates and betas stay as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape != parameter.shape:  # the count of steps
            own = value
        elif distributed.is_sharded(parameter):
            own = distributed.spread_like(value, parameter)
        else:  # fused Adam walks through moments in the parameter's layout
            own = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = own
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


@dataclass(frozen=True)
class Batch:
    """The samples of one step: which of them this process computes, in chunks that fit its device."""

    seed: int
    nimg: int  # images seen when the step began: the key of its random numbers
    size: int  # samples of the step over all processes
    chunks: tuple[range, ...]  # sample indices of this process
    device: torch.device

    @classmethod
    def of_step(
        cls, *, seed: int, nimg: int, size: int, batch_gpu: int, rank: int, world_size: int, device: torch.device
    ) -> Batch:
        """Sample indices [0, size) shared out evenly over processes, then over chunks of at most batch_gpu."""
        share = size // world_size
        own = range(rank * share, (rank + 1) * share)
        chunks = tuple(own[start : start + batch_gpu] for start in range(0, share, batch_gpu))
        return cls(seed, nimg, size, chunks, device)

    @property
    def local_size(self) -> int:
        """Samples of the step in this process: what its gradients are averaged over."""
        return sum(map(len, self.chunks))

    def random(self, purpose: str, chunk: range) -> SampleRandom:
        """Random streams of a chunk's samples."""
        return SampleRandom(self.seed, purpose, self.nimg, chunk, self.device)

    def seed_dropout(self, chunk: range) -> None:
        """Seeds PyTorch's own random numbers, which dropout draws: a chunk's are the same in whichever process."""
        torch.manual_seed(int(stream(self.seed, "dropout", self.nimg, chunk.start).integers(2**31)))

    def labels(self, purpose: str, chunk: range, label_dim: int) -> Tensor | None:
        """One-hot labels [n,label_dim] drawn uniformly over the classes; None when there are none."""
        if label_dim == 0:
            return None
        classes = self.random(f"{purpose}/labels", chunk).integers(label_dim)
        return (classes[:, None] == torch.arange(label_dim, device=self.device)).float()  # one_hot would read its input


@contextmanager
def trainable(module: torch.nn.Module, *, train_mode: bool) -> Iterator[None]:
    """The module's parameters take gradients inside and not outside; dropout and running means only in train mode."""
    module.train(train_mode).requires_grad_(True)
    try:
        yield
    finally:
        module.eval().requires_grad_(False)
