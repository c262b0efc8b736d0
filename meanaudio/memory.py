"""How the process's C library hands memory out."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
KEPT = 1 << 30  # bytes
KEEP = "MEANAUDIO_KEEP_MEMORY"  # environment: 0 leaves the allocator as it is


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 1 GiB instead of giving them back to the system; True if it will.

    Blocks of some megabytes, the size of activations, are otherwise returned as soon as they are free and faulted in again, zeroed, page by
    page, at the next layer: a tenth of a large vocoder's time. The peak stays what it is; freed memory counts as the process's own until
    it ends or `give_back_freed_memory`; all threads share it. For the whole process. Elsewhere than on Linux with glibc, and with
    MEANAUDIO_KEEP_MEMORY=0 in the environment, nothing is done.
    """
    mallopt = None if os.environ.get(KEEP) == "0" else _glibc("mallopt")
    options = ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1))
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in options])


def give_back_freed_memory() -> None:
    """Return to the system what has been kept so far."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library, or None if it is not glibc's."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
