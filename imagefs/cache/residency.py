"""What the page cache has of the complete files of the SSD tier: which ranges of them programs have touched, in kernel mode.

The SSD tier writes and verifies past the page cache where the file system can do that, so what is there was read by somebody else: in this
start, or before it. Blocking functions, for threads.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from imagefs import syscalls
from imagefs.cache.disk_files import OBJECTS
from imagefs.format.accesses import GRAIN

_CALLS_MAX: Final = 100_000
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def resident(cache: Path, objects: Mapping[int, tuple[bytes, int]]) -> dict[int, list[tuple[int, int]]]:
    """Return the ranges (end exclusive) that the page cache has of objects, given by number with digest and size, in grains.

    Objects that SSD does not have whole are left out, and all where the kernel cannot be asked (before Linux 6.5), or once that takes
    very many calls.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    calls = 0
    for number, (digest, size) in objects.items():
        name = digest.hex()
        with suppress(OSError):
            descriptor = os.open(cache / OBJECTS / name[:2] / name[2:], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                ranges: list[tuple[int, int]] = []
                calls += _look(descriptor, 0, size, ranges)
                found[number] = ranges
            finally:
                os.close(descriptor)
        if calls > _CALLS_MAX:
            break
    return found


def _look(descriptor: int, start: int, end: int, ranges: list[tuple[int, int]]) -> int:
    """Add what of a range is there to ``ranges``, and return how often the kernel was asked: halves, until all or none of one is."""
    pages = syscalls.cachestat(descriptor, start, end - start)
    if not pages:
        return 1
    if end - start > GRAIN and pages < -(-(end - start) // _PAGE):
        middle = start + (-(-(end - start) // GRAIN) // 2) * GRAIN
        return 1 + _look(descriptor, start, middle, ranges) + _look(descriptor, middle, end, ranges)
    if ranges and ranges[-1][1] == start:
        start = ranges.pop()[0]
    ranges.append((start, end))
    return 1
