"""The state of a training: its networks, their optimizers, and its progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError
from stylegan_di.torch_utils import distributed

COUNTERS = ("cur_nimg", "cur_tick", "cur_step", "snapshot_due", "history", "returns")  # TrainState's, for JSON
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # Adam's, of each parameter


@dataclass
class TrainState:
    """Everything that changes during a training."""

    networks: dict[str, torch.nn.Module]  # by role; 'model' is being trained, 'ema' is its average
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)  # of the trained networks, by role
    scalars: dict[str, Tensor] = field(default_factory=dict)  # equal in all processes, such as the mean path length
    totals: dict[str, Tensor] = field(default_factory=dict)  # sums over the samples of each process
    cur_nimg: int = 0
    cur_tick: int = 0
    cur_step: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)  # (step, network) of updates that were skipped
    undecided: list[tuple[int, str, Tensor]] = field(default_factory=list)  # whether each was skipped, not yet read
    snapshot_due: bool = False  # whether a snapshot must be made before the next step
    history: dict[str, list[float]] = field(default_factory=dict)  # watched statistics, tick by tick
    returns: int = 0  # number of returns to the best snapshot

    def tensors(self) -> dict[str, Tensor]:
        """Returns weights, averages and moments: 'ema.<key>', 'optimizer.model.<index>.exp_avg', 'pl_mean'.

        Sharded weights are gathered, so all processes must call this.
        """
        found = dict(self.scalars)
        for name, own in self.totals.items():
            total = own.clone()
            distributed.average([total])
            found[name] = total * distributed.world_size()
        for role, module in self.networks.items():
            found |= {f"{role}.{key}": distributed.whole(value) for key, value in module.state_dict().items()}
        for role, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                for name, value in moments.items():
                    found[f"optimizer.{role}.{index}.{name}"] = distributed.whole(value)
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads what `tensors` returned and ignores other names.

        Raises:
            UserError: if the networks differ.
        """
        for role, module in self.networks.items():
            own, weights = module.state_dict(), below(role, tensors)
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
                raise UserError(f"--resume: the state's {role} is not a network of this version and these options")
            module.load_state_dict({key: distributed.spread_like(weights[key], own[key]) for key in own})
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_optimizer_state(optimizer, below(f"optimizer.{role}", tensors)))
        self.scalars = {name: tensors[name].to(own.device, copy=True) for name, own in self.scalars.items()}
        self.totals = {
            name: tensors[name].to(own.device) / distributed.world_size() for name, own in self.totals.items()
        }

    def recover(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the tensors of an earlier state after the training diverged; the count of images is kept."""
        self.load_tensors(tensors)
        self.returns += 1
        self.undecided.clear()
        self.skipped.clear()
        self.history.clear()

    def note_skipped(self) -> None:
        """Adds to `skipped` the updates skipped since the last call, in one read from the device."""
        if self.undecided:
            flags = torch.stack([flag for _, _, flag in self.undecided]).tolist()
            self.skipped += [(step, role) for (step, role, _), flag in zip(self.undecided, flags, strict=True) if flag]
            self.undecided.clear()

    def values(self) -> dict[str, Any]:
        """Returns everything except tensors, for JSON."""
        self.note_skipped()
        return {name: getattr(self, name) for name in COUNTERS} | {"skipped": [list(entry) for entry in self.skipped]}

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what `values` and `tensors` returned."""
        self.load_tensors(tensors)
        for name in COUNTERS:
            if type(values[name]) is not type(getattr(self, name)) or (type(values[name]) is int and values[name] < 0):
                raise ValueError(f"{name}={str(values[name])[:40]}")
            setattr(self, name, values[name])
        self.history = {str(name): [float(mean) for mean in means] for name, means in self.history.items()}
        self.skipped = [(int(step), str(role)) for step, role in values["skipped"]]


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with 'prefix.', by the rest of their names."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _optimizer_state(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> dict[str, Any]:
    """Makes an optimizer's state dict from '<index>.<name>' -> tensor; its rates and betas are kept.

    Raises:
        ValueError: for moments that are not those of its parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape != (torch.Size([]) if name == "step" else parameter.shape):
            raise ValueError(f"the moment {key} of shape {list(value.shape)}")
        if name == "step":
            own = value.clone()  # which the optimizer's steps count up in place
        elif distributed.is_sharded(parameter):
            own = distributed.spread_like(value, parameter)
        else:  # fused Adam reads moments in the parameter's memory layout
            own = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = own
    if incomplete := [index for index, own in state.items() if own.keys() != MOMENTS]:
        raise ValueError(f"the moments of parameter {incomplete[0]} alone are {', '.join(state[incomplete[0]])}")
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
