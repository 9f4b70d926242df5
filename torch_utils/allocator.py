"""Memory settings that make training faster, set by the entry scripts.

glibc gives large blocks back to the system when they are freed and gets them anew when they are asked for: every
activation of every step is then paid for in page faults. Kept instead, they are there for the next step.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP_BYTES = 1 << 30  # blocks up to this size come from the heap, whose freed end is kept up to this size
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed blocks for the next step; returns whether it does.

    Nothing is changed where malloc is another one, or where the environment already says how it is to work. On GPUs
    PyTorch's own allocator does the same by itself.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and library.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
