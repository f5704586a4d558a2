"""How memory is managed in a process that converts and ends.

A conversion allocates and frees a buffer of a megabyte a thousand times a second. By default each is mapped from the kernel and given back,
and each of its pages is zeroed and faulted in again: measured, a fifth of a conversion's time. Kept in the heap, the same pages go round.

It also makes hundreds of thousands of small objects that live until the end and form no cycles. The cyclic collector looks at them
again and again and finds nothing: measured, a twentieth.
"""

import ctypes
import gc
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BUFFER: Final = 32 * 1024 * 1024
_KEPT: Final = 128 * 1024 * 1024


def settle_in() -> None:
    """Make this process keep freed buffers for the next ones, and free objects by their reference counts alone.

    For a process that converts and ends: both settings are the whole process's. A C library without mallopt is left as it is.
    """
    gc.disable()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
