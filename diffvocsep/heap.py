"""What the C library does with memory that a layer has freed before the next one asks for it."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEEP = 2**30  # bytes
LARGEST = 2**25  # bytes; the most that every 64-bit glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for its next request (`man mallopt`); nothing but on glibc.

    Otherwise glibc hands tensors of some MB back to the kernel, which fills their pages with zeros anew, layer after
    layer: a sixth of the time of a separation on two CPU cores (docs/benchmarks.md). The peak stays what it was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEEP)
