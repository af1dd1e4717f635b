"""Too little memory, and what the C library does with memory that a layer has freed before the next one asks for it."""

from __future__ import annotations

import ctypes
import os
import re
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


def is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, what torch raises for a GPU, and the RuntimeErrors that it raises for a CPU and for MPS."""
    import torch  # a second, which `--help` does not wait

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = r"DefaultCPUAllocator|not enough memory|out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(said, str(error), re.I) is not None
