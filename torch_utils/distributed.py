"""The only caller of torch.distributed: one process works as a world of one."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor


def init(device: torch.device) -> None:
    """Joins the processes that torchrun started; does nothing without torchrun."""
    if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend="nccl" if device.type == "cuda" else "gloo")


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


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        torch.distributed.barrier()


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces the tensors by their means over the processes, in one exchange a data type."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        torch.distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def broadcast_string(text: str) -> str:
    """The first process's string, in every process."""
    if world_size() == 1:
        return text
    box = [text]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
