"""What one read waited for. Pure.

Invariant: the parts of a wait add up to it exactly, whatever a document says. A read that waited for the store waited for a GET, and its
wait is laid over that GET's times: what it overlaps with is what it waited for. What lies before and after is the daemon's own (``other``):
handling the request, handing over between threads, waking up.
"""

import itertools
from typing import Final

from imagefs.format.start import PROFILE, RAM, SSD, STORE, Get, Read, Start

KINDS: Final = ("queue", "first_byte", "transfer", "decode", "verify", "disk", "other")
"""What a wait is for: the gate, an answer, its bytes, zstd, BLAKE3, this host's disk, and the rest."""

QUEUE, FIRST_BYTE, TRANSFER, DECODE, VERIFY, DISK, OTHER = range(7)

Parts = tuple[int, int, int, int, int, int, int]
"""Microseconds by kind, in the order of :data:`KINDS`."""

NOTHING: Final[Parts] = (0, 0, 0, 0, 0, 0, 0)

HELP: Final = ("local", "in_time", "late", "missed", "unknown", "no_profile")
"""What a profile did for a read, or would have done.

It was not needed; it had the content there in time; it was bringing it; it names the file but a reader had to ask; it does not know the
file; there was none.
"""

LOCAL, IN_TIME, LATE, MISSED, UNKNOWN, NO_PROFILE = range(6)


def plus(one: Parts, other: Parts) -> Parts:
    """Add parts."""
    a, b, c, d, e, f, g = one
    h, i, j, k, l, m, n = other  # noqa: E741 # seven letters more
    return a + h, b + i, c + j, d + k, e + l, f + m, g + n


def split(start: Start, read: Read, begin: int, end: int) -> Parts:
    """Return what the part of a read's wait from ``begin`` to ``end`` was for. It adds up to ``end - begin``."""
    length = end - begin
    if read.tier == SSD:
        return 0, 0, 0, 0, 0, length, 0
    if read.tier != STORE or read.get < 0:
        return 0, 0, 0, 0, 0, 0, length
    return overlap(start.gets[read.get], begin, end)


def overlap(get: Get, begin: int, end: int) -> Parts:
    """Return what somebody waited for who waited for a GET from ``begin`` to ``end``."""
    edges = [begin]
    for moment in (get.queued, get.sent, get.first, get.arrived, get.decoded):
        # What has not happened by then was still waited for.
        at = end if moment == -1 else moment
        edges.append(min(end, max(at, edges[-1])))
    before, queue, first, transfer, coded = (late - early for early, late in itertools.pairwise(edges))
    decode, verify, handed = _shares(get, coded)
    return queue, first, transfer, decode, verify, 0, before + handed + (end - edges[-1])


def _shares(get: Get, length: int) -> tuple[int, int, int]:
    """Share the time between arrival and the end of decoding out: to zstd, BLAKE3, and the rest, such as waiting for a thread."""
    cpu = get.decode_cpu + get.verify_cpu
    if not cpu:
        return 0, 0, length
    whole = max(cpu, get.decoded - get.arrived if get.decoded >= get.arrived >= 0 else cpu)
    decode = length * get.decode_cpu // whole
    verify = length * get.verify_cpu // whole
    return decode, verify, length - decode - verify


def helped(start: Start, read: Read, *, streamed: bool) -> int:
    """Say what a profile did for a read. ``streamed``: there was prefetch by a profile in this start."""
    is_profiled = start.files[read.file].profiled > 0
    if read.tier != STORE:
        return IN_TIME if streamed and is_profiled and read.tier >= RAM else LOCAL
    if read.get >= 0 and start.gets[read.get].kind == PROFILE:
        return LATE
    if start.profile is None:
        return NO_PROFILE
    return MISSED if is_profiled else UNKNOWN
