"""What a run takes of the machine, by stylegan2-ada's names."""

from __future__ import annotations

import psutil
import torch

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
