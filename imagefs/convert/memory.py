"""How the C library's allocator treats a conversion's buffers.

A conversion allocates and frees a buffer of a megabyte a thousand times a second. By default each is mapped from the kernel and given back,
and each of its pages is zeroed and faulted in again: measured, a fifth of a conversion's time. Kept in the heap, the same pages go round.
"""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BUFFER: Final = 32 * 1024 * 1024
_KEPT: Final = 128 * 1024 * 1024


def keep_buffers() -> None:
    """Make this process keep freed buffers for the next ones: for one that converts and ends.

    Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
