"""`--gpus=N`: starts the processes of a run on this machine and makes them end together.

Each runs the same command, with the environment that torchrun would set. Signals are forwarded. When a process fails,
the others have GRACE seconds to end by themselves and are then killed; when this process dies, they stop too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.runs.endings import KILL, STOPPING, Interrupted
from stylegan_di.torch_utils import distributed
from stylegan_di.torch_utils.distributed import ProcessLost

GRACE = 20.0  # seconds for the others to end after one has failed
started = distributed.under_torchrun  # whether `run` or torchrun started this process
ORPHAN = 120.0  # seconds for a process to finish its step and save once its parent has died
PARENT = "STYLEGAN_DI_PARENT"  # set in the processes that `run` starts


class ProcessFailed(UserError):
    """A process other than the first ended with a nonzero status, which becomes the run's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def has_parent() -> bool:
    """Returns whether `run` started this process."""
    return PARENT in os.environ


def run(command: Sequence[str], count: int) -> int:
    """Runs a command in `count` processes until all have ended.

    Returns 0, or the status of the first process, which has then printed why.

    Raises:
        ProcessLost: if a process was killed.
        ProcessFailed: if a process other than the first failed; the message includes its output.
    """
    store = distributed.meeting_point()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        children = [_start(command, rank, count, store.port, output) for rank, output in enumerate(outputs)]
        stack.callback(_kill, children)
        for number in STOPPING:
            previous = signal.signal(number, lambda number, frame: _send(children, number))
            stack.callback(signal.signal, number, previous)
        cause = _wait(children)
        return 0 if cause is None else _explain(cause, children, outputs)


def check_count(count: int, device: str) -> None:
    """Raises UserError if this machine has no GPUs or cores for so many processes."""
    found, kind = (torch.cuda.device_count(), "GPUs") if device.startswith("cuda") else (os.cpu_count() or 1, "cores")
    if count > found:
        raise UserError(f"--gpus={count}: this machine has {found} {kind}; accepted are 1 to {found}")


def _send(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    _send(children, KILL)
    for child in children:
        child.wait()
        assert child.stdin is not None
        child.stdin.close()


def _start(command: Sequence[str], rank: int, count: int, port: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts one process in its own session; all but the first write to `output`."""
    threads = str(max((os.cpu_count() or 1) // count, 1))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store exists already, as under torchrun
        PARENT: str(os.getpid()),
    }  # fmt: skip
    stream = None if rank == 0 else output
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
    )


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all; returns the first process that failed other than by losing another, None if all succeeded."""
    failed: dict[int, float] = {}
    while any(child.poll() is None for child in children):
        for rank, child in enumerate(children):
            if child.poll():
                failed.setdefault(rank, time.monotonic())
        if failed and time.monotonic() - min(failed.values()) > GRACE:
            break
        time.sleep(0.05)
    for rank, child in enumerate(children):
        if child.poll():
            failed.setdefault(rank, time.monotonic())
    causes = [rank for rank in failed if children[rank].returncode != ProcessLost.status]
    if 0 in causes and children[0].returncode > 0:
        return 0  # it has already printed why, even if another failed first
    return next(iter(causes or failed), None)


def _explain(cause: int, children: Sequence[subprocess.Popen[bytes]], outputs: Sequence[IO[bytes]]) -> int:
    """Returns the status of a failed process that has printed why; for others raises an error that explains it."""
    status, count = children[cause].returncode, len(children)
    outputs[cause].seek(0)
    told = " ".join(outputs[cause].read().decode(errors="replace").split())[-2000:]
    if status < 0:
        name, output = signal.Signals(-status).name, f" (its output: {told})" if told else ""
        raise ProcessLost(
            f"process {cause} of {count} was killed by {name}; the others have been ended; go on from the last state, "
            f"if one was saved, with --resume=latest{output}"
        )
    if status == ProcessLost.status:
        raise ProcessLost(f"the {count} processes of the run lost each other; its log.txt says at which exchange")
    if cause == 0 or status == Interrupted.status:
        return int(status)
    raise ProcessFailed(f"process {cause} of {count} ended with status {status}: {told}", status)


def follow_parent() -> None:
    """Makes a process that `run` started stop when its parent dies, at the latest ORPHAN seconds later."""
    if not has_parent():
        return

    def watch() -> None:
        os.read(0, 1)  # the parent never writes, so this returns when it dies
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN)
        os.kill(os.getpid(), KILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()
