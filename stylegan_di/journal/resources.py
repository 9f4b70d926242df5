"""What a run takes of the machine, by stylegan2-ada's names."""

from __future__ import annotations

import sys

import psutil
import torch

from stylegan_di.dnnlib.progress import format_time

GIB = 2**30


def resources() -> dict[str, float]:
    """Returns this process's memory in GiB: at present, and PyTorch's peaks on the GPU since the last call.

    Without a GPU the peaks are 0.
    """
    found = {
        "cpu_mem_gb": psutil.Process().memory_info().rss / GIB,
        "peak_gpu_mem_gb": torch.cuda.max_memory_allocated() / GIB,
        "peak_gpu_mem_reserved_gb": torch.cuda.max_memory_reserved() / GIB,
    }
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    return {f"Resources/{name}": value for name, value in found.items()}


def estimate(seconds: float, kimg: float, device: torch.device) -> str:
    """'5.96 s/kimg: 2m 59s for 30 kimg, 0.52 GiB of memory' of a run that has taken that time for a kimg so far."""
    whole = f"{seconds:.2f} s/kimg: {format_time(seconds * kimg)} for {kimg:g} kimg"
    if device.type == "cuda":
        return f"{whole}, {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB of the GPU"
    peak = peak_memory()
    return whole if peak is None else f"{whole}, {peak / GIB:.2f} GiB of memory"


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory; None on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
