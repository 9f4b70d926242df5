"""Memory settings that make training faster, set by the entry scripts.

By default glibc returns large blocks to the system when they are freed and requests them again later, so that every
activation of every step costs page faults. Blocks that the process keeps can be reused by the next step.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP_BYTES = 1 << 30  # blocks up to this size come from the heap, which keeps up to this much freed memory at its end
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed blocks for the next step; returns whether it does.

    It changes nothing if malloc is not glibc's, or if the environment already configures malloc. On GPUs PyTorch's own
    allocator keeps freed blocks anyway.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and library.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
