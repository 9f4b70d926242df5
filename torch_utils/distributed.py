"""The only module that calls torch.distributed; without torchrun, one process is a world of one."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stylegan_di.dnnlib.util import UserError

T = TypeVar("T")

#: The longest wait for another process, because the first one may measure for long. A dead one is noticed at once.
TIMEOUT = datetime.timedelta(hours=6)
_LAST_BEAT = b"done"


class ProcessLost(UserError):
    """Another process of the run has died, failed or left."""

    status = 5


class Abandoned(Exception):
    """Another process left work that all were doing `together`, because it was interrupted or failed unexpectedly.

    To be treated as an interruption of this process: a process that has failed is missed at the next exchange.
    """


class _FailedElsewhere(UserError):
    """The UserError of another process, with its text and status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Turns the backend's errors during an exchange with other processes into ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ProcessLost(
            f"process {rank()} of {world_size()} lost another one, which has died or failed ({reason}); "
            "go on from the last state, if one was saved, with --resume"
        ) from error


def under_torchrun() -> bool:
    """Whether torchrun, or train.py --gpus, started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def meeting_point() -> torch.distributed.TCPStore:
    """Opens a store on a free port, by which processes that this one starts find each other while it is kept."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def init(device: torch.device) -> None:
    """Joins the processes that torchrun started; does nothing without torchrun."""
    if under_torchrun() and not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            torch.distributed.init_process_group(backend=backend, timeout=TIMEOUT)
        except RuntimeError as error:
            raise ProcessLost(f"the processes of the run did not find each other ({str(error)[:200]})") from error


@contextlib.contextmanager
def heartbeats(seconds: float, lost: Callable[[str], object]) -> Iterator[None]:
    """Notices, from a thread, a process of the run that hangs: it beats in the store, and listens for the others.

    Args:
        seconds: without a beat of another process for so long, this one is without it.
        lost: called then, with a message; it must end this process, whose main thread may wait in an exchange.
    """
    if not under_torchrun() or launched() == 1:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(seconds, lost, done), daemon=True, name="heartbeats")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(seconds)


def _beat(seconds: float, lost: Callable[[str], object], done: threading.Event) -> None:
    me, count, pause = int(os.environ["RANK"]), launched(), max(seconds / 10, 0.1)
    limit = datetime.timedelta(seconds=seconds)
    heard: dict[int, tuple[bytes, float]] = {}
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=limit)
        number = 0
        store.set(f"beat/{me}", str(number))  # at once, so that a process that hangs soon has been heard
        while not done.wait(pause):
            number += 1
            store.set(f"beat/{me}", str(number))
            for other in range(count):
                if other == me or not store.check([f"beat/{other}"]):
                    continue
                beat, now = store.get(f"beat/{other}"), time.monotonic()
                if beat == _LAST_BEAT or heard.get(other, (b"", now))[0] != beat:
                    heard[other] = beat, now
                elif now - heard[other][1] > seconds:
                    lost(f"process {me} of {count}: process {other} has not been heard of for {seconds:g} s")
        store.set(f"beat/{me}", _LAST_BEAT.decode())
    except RuntimeError as error:  # whoever keeps the store is gone
        if not done.is_set():
            lost(f"process {me} of {count} has lost the store of the run ({str(error).splitlines()[0][:160]})")


def finish() -> None:
    """Leaves the group of processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def local_device(name: str) -> torch.device:
    """Returns the device of this process; under torchrun 'cuda' means the GPU of the local rank."""
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
    """Returns how many processes torchrun started, 1 without torchrun; this is known before `init`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces the tensors by their means over the processes, in one exchange per dtype; skips sharded ones."""
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
    """Returns whether the flag is set in any process; no process returns before all have called this.

    The flags are exchanged between CPUs, so that nobody waits for pending work on GPUs.
    """
    if world_size() == 1:
        return flag
    count = torch.tensor([float(flag)])
    with _exchange():
        torch.distributed.all_reduce(count)
    return bool(count.item())


def gather_ragged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins vectors [n] of the same name from all processes, in order of rank, on the CPU where there are several.

    Lengths may differ, and a name may be missing in some processes.
    """
    if world_size() == 1:
        return dict(tensors)
    box = gather_objects({name: vector.cpu().numpy() for name, vector in tensors.items()})
    names = dict.fromkeys(name for part in box for name in part)
    return {name: torch.from_numpy(np.concatenate([part[name] for part in box if name in part])) for name in names}


def gather_objects(value: T) -> list[T]:
    """Returns every process's value, in order of rank."""
    box = [value] * world_size()
    if world_size() > 1:
        with _exchange():
            torch.distributed.all_gather_object(box, value)
    return box


def broadcast_string(text: str) -> str:
    """Returns the first process's string, in every process."""
    if world_size() == 1:
        return text
    box = [text]
    with _exchange():
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


# Work that all processes do together.


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Work that all processes do at the same time; where it fails in one, all leave it, so that none waits for ever.

    The process that failed raises its own error. The others raise it when they next `meet`, at the latest on leaving
    this context: a UserError with its text and status, any other Exception as Abandoned. Afterwards the processes can
    go on with other exchanges. Inside, each exchange comes after a `meet`, with nothing between them that can fail.
    Contexts cannot be nested.
    """
    try:
        yield
    except (Abandoned, _FailedElsewhere, ProcessLost):
        raise  # the other processes know of it already, or cannot be told
    except Exception as error:
        _tell(error)
        raise
    meet()


def meet() -> None:
    """Waits for the other processes inside `together`, and raises if one of them has failed.

    Raises:
        UserError, Abandoned: see `together`.
    """
    if not any_process(False):
        return
    reports: list[dict[str, Any] | None] = gather_objects(None)
    failures = [(number, report) for number, report in enumerate(reports) if report is not None]
    for _, report in failures:
        if report["status"] is not None:
            raise _FailedElsewhere(report["text"], report["status"])
    number, report = failures[0]
    raise Abandoned(f"process {number} of {world_size()} has left the work of all ({report['text']})")


def _tell(error: Exception) -> None:
    """Tells the processes that `meet` of an error in this one."""
    report: dict[str, Any] = {"text": f"{type(error).__name__}: {error}", "status": None}
    if isinstance(error, UserError):
        report = {"text": str(error), "status": error.status}
    with contextlib.suppress(ProcessLost):  # the error itself says more
        any_process(True)
        gather_objects(report)


def share_out(
    num: int,
    batch: int,
    compute: Callable[[range], Sequence[Tensor]],
    combine: Callable[[Sequence[Tensor]], None],
    report: Callable[[int], None] | None = None,
) -> None:
    """Computes batches of items 0 to num - 1 in all processes inside `together`, batch k in rank k mod world_size.

    The first process combines the results in order, so that what it makes of them has the same bits as in one process.

    Args:
        compute: gives a batch's results, on any device.
        combine: takes a batch's results, in the first process only; on the CPU where there are several processes.
        report: called in every process after each round of batches, with the number of items that are done.
    """
    batches = [range(start, min(start + batch, num)) for start in range(0, num, batch)]
    for start in range(0, len(batches), world_size()):
        at_once = batches[start : start + world_size()]
        results = compute(at_once[rank()]) if rank() < len(at_once) else None
        for gathered in _gather_results(results):
            combine(gathered)
        if report is not None:
            report(at_once[-1].stop)


def _gather_results(results: Sequence[Tensor] | None) -> list[Sequence[Tensor]]:
    """In the first process the results of all, in order of rank, without those that are None; else an empty list."""
    if world_size() == 1:
        return [] if results is None else [results]
    arrays = None if results is None else [result.cpu().numpy() for result in results]
    meet()
    box: list[list[np.ndarray] | None] | None = [None] * world_size() if rank() == 0 else None
    with _exchange():
        torch.distributed.gather_object(arrays, box, dst=0)
    return [[torch.from_numpy(array) for array in arrays] for arrays in box or [] if arrays is not None]


# Weights that are spread over the processes (FSDP2).


def shard(module: torch.nn.Module) -> None:
    """Shards a module's weights over the processes: each keeps a part, and gathers a block's while it computes.

    Gradients are averaged over the processes in the backward pass. Blocks are the members of the module's ModuleDicts.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # the only layout that FSDP can shard
    for container in list(module.modules()):
        if isinstance(container, torch.nn.ModuleDict):
            for block in container.values():
                fully_shard(block)
    fully_shard(module)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor from all processes, which must all call this; returns other tensors unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Shards a whole tensor over the processes as the reference is; unchanged if the reference is not sharded."""
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(reference, DTensor)
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
