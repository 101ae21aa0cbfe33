"""Memory that a training step frees stays with the process, for the next step."""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Have glibc's allocator keep what is freed, for the rest of this process.

    By default it hands every block of more than 32 MB back to the kernel when it is freed, and a step of
    training frees and asks for hundreds of them: the kernel clears each page again when it is next touched.

    Returns:
        Whether it was done: not with another C library, nor where the environment has settings of malloc.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    no_mappings = mallopt(_M_MMAP_MAX, 0)  # blocks of any size come from the heap
    return bool(no_mappings and mallopt(_M_TRIM_THRESHOLD, -1))  # whose end is not given back
