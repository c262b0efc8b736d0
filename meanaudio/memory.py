"""How the process's C library hands memory out."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 1 GiB instead of giving them back to the system; True if it will.

    Blocks of some megabytes, the size of activations, are otherwise returned as soon as they are free and faulted in again, zeroed, page by
    page, at the next layer: a tenth of a large vocoder's time. The peak stays what it is; freed memory counts as the process's own until
    it ends; all threads share it. For the whole process, and for good. Elsewhere than on Linux with glibc nothing is done.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    options = ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1))
    return all([mallopt(option, value) == 1 for option, value in options])
