"""How a process asks the system for memory; imports nothing heavy."""

import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT, MAPPED_FROM = 2**31 - 1, 2**30  # bytes
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep memory that was freed instead of asking for it again at every step.

    A volume is larger than what the C library keeps, so that each of them would be mapped, zeroed page by page, and
    given back. What the user has set in the environment stays as it is; another C library than glibc is left alone.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
        mallopt(M_TRIM_THRESHOLD, KEPT)
