"""The only caller of torch.distributed: one process works as a world of one."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError

#: Longest wait for another process. Processes that die are noticed at once; the first one may measure for long.
TIMEOUT = datetime.timedelta(hours=6)


class ProcessLost(UserError):
    """Another process of the run has died, failed or left."""

    status = 5


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Turns the back end's errors in an exchange with other processes into ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ProcessLost(
            f"process {rank()} of {world_size()} lost another one, which has died or failed ({reason}); "
            "go on from the last state with --resume"
        ) from error


def under_torchrun() -> bool:
    """Whether torchrun, or train.py --gpus, started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def meeting_point() -> torch.distributed.TCPStore:
    """Where processes that this one starts find each other, on a free port of this machine, while it is kept."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def init(device: torch.device) -> None:
    """Joins the processes that torchrun started; does nothing without torchrun."""
    if under_torchrun() and not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _exchange_before_start():
            torch.distributed.init_process_group(backend=backend, timeout=TIMEOUT)


@contextlib.contextmanager
def _exchange_before_start() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(f"the processes of the run did not find each other ({str(error)[:200]})") from error


def finish() -> None:
    """Leaves the group of processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device of this process: under torchrun 'cuda' means the GPU of the local rank."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def launched() -> int:
    """How many processes torchrun started; 1 without torchrun. Known before `init`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces the tensors by their means over the processes, in one exchange a data type; sharded ones are left."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if not is_sharded(tensor):
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        with _exchange():
            torch.distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; also a barrier: nobody goes on before everybody is here.

    It is exchanged between CPUs: what GPUs have yet to do is not waited for.
    """
    if world_size() == 1:
        return flag
    count = torch.tensor([float(flag)])
    with _exchange():
        torch.distributed.all_reduce(count)
    return bool(count.item())


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, equal in shape, joined along the first dimension in order of rank."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _exchange():
        torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_strings(text: str) -> list[str]:
    """Every process's string, in order of rank."""
    if world_size() == 1:
        return [text]
    box: list[str] = [""] * world_size()
    with _exchange():
        torch.distributed.all_gather_object(box, text)
    return box


def broadcast_string(text: str) -> str:
    """The first process's string, in every process."""
    if world_size() == 1:
        return text
    box = [text]
    with _exchange():
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


# Weights that are spread over the processes (FSDP2).


def shard(module: torch.nn.Module) -> None:
    """Spreads the weights of a module over the processes: each keeps a part, and gathers a block's while it computes.

    Gradients are averaged over the processes in the backward pass. Blocks are the members of the module's ModuleDicts.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # the only layout that can be spread
    for container in list(module.modules()):
        if isinstance(container, torch.nn.ModuleDict):
            for block in container.values():
                fully_shard(block)
    fully_shard(module)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which must all call this; other tensors as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, spread over the processes if the reference is."""
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
