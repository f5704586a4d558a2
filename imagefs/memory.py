"""How a process of ours is settled, beyond Python's defaults: its memory, its collector, its descriptors.

A process that moves content allocates and frees a buffer of a megabyte hundreds of times a second. By default each is mapped from the
kernel and given back, and each of its pages is zeroed and faulted in again: measured, a fifth of a conversion's time, and a third of the
time for which the daemon holds the interpreter's lock in a cold read. Kept in the heap, the same pages go round.
"""

import contextlib
import ctypes
import gc
import resource
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BUFFER: Final = 32 * 1024 * 1024

_CONVERTER_KEEPS: Final = 128 * 1024 * 1024
_DAEMON_KEEPS: Final = 32 * 1024 * 1024


def settle_converter() -> None:
    """Settle a process that converts and ends.

    It makes hundreds of thousands of small objects that live until the end and form no cycles. The cyclic collector looks at them again and
    again and finds nothing: measured, a twentieth of the time. So objects go by their reference counts alone.
    """
    gc.disable()
    _keep_freed(_CONVERTER_KEEPS)


def settle_daemon() -> None:
    """Settle a process that serves for months: cycles are collected, but not those of the modules, and not every few requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    _keep_freed(_DAEMON_KEEPS)
    # Sockets to the store and files of the cache: more than the 1,024 descriptors that a process gets where nothing else is said.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keep_freed(count: int) -> None:
    """Let malloc keep up to ``count`` freed bytes. A C library without mallopt is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, count)
