"""What the C library does with memory that a layer has freed before the next one asks for it."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**30  # bytes
MAX_MMAP_THRESHOLD = 2**25  # bytes; the most that every 64-bit glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next request (`man mallopt`). Only on glibc, and only where the
    environment says nothing about it.

    Otherwise glibc hands tensors of some MB back to the kernel, which fills their pages with zeros anew, layer after
    layer: a fifth of the time of a separation on two CPU cores (docs/benchmarks.md). The peak stays about what it was.
    """
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not configured else None
    if mallopt is not None and mallopt(
        M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD
    ):  # else it would never grow by itself again
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
