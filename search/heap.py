"""The C library's heap: freed memory stays with the process, so that each step's tensors find it mapped."""

from __future__ import annotations

import ctypes
import os
from functools import cache

MMAP_THRESHOLD = 32 << 20
"""Bytes; smaller blocks come from the heap. The most that glibc takes."""
TRIM_THRESHOLD = 64 << 20
"""Bytes that may lie free at the heap's top before they go back to the system."""

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to `TRIM_THRESHOLD` bytes of freed memory; once, for good.

    Left alone, glibc hands a step's activations back to the system at its end, and the next step maps them anew, page
    by page: a pointwise op on 512 KiB then takes 125 microseconds, not 10. What the process is given in
    `MALLOC_TRIM_THRESHOLD_` or `MALLOC_MMAP_THRESHOLD_` stands.

    Returns:
        Whether it was done: not under another C library, nor where the environment says otherwise.
    """
    if os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}:
        return False
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version
    except (OSError, TypeError, AttributeError):
        return False
    return all(
        library.mallopt(name, size)
        for name, size in ((_M_MMAP_THRESHOLD, MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, TRIM_THRESHOLD))
    )
