"""The RAM tier: decoded frames in slabs, bounded by bytes.

A *slab* is one contiguous buffer: the frames of one aligned window of a large object, or one frame that small objects share. A read that
lies in a slab is answered with a view of it and copies nothing. Slabs are named by digests, so images share them.

Invariants:

- the bytes of a piece that is ``READY`` are verified and never change: the buffer is let go of when its last view is, whatever eviction
  does;
- bytes are counted when a piece lands: a slab's untouched rest is address space, not memory;
- the total is at most the limit, plus what is in flight: a slab that is being filled is never evicted, or single flight would break.

All of it belongs to the trio thread; fetching threads write to ``view`` where a piece is ``IN_FLIGHT``, and nowhere else. What does not
live here: where pieces come from (``imagefs.cache.fetcher``).
"""

import mmap
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Final

import trio

from imagefs.errors import ImageFSError

MISSING: Final = 0
IN_FLIGHT: Final = 1
READY: Final = 2

_MMAP_FROM: Final = 64 * 1024


class Slab:
    """One buffer and the state of each of its pieces.

    Piece ``i`` is bytes ``bounds[i]`` to ``bounds[i + 1]`` of ``view``. Readers that wait for one park in ``lot`` and look again when
    woken.
    """

    __slots__ = ("bounds", "dropped", "in_flight", "key", "landed", "lot", "missing", "state", "view")

    def __init__(self, key: Hashable, bounds: Sequence[int]) -> None:
        """``bounds`` are the pieces' limits in bytes, from 0 to the size of the slab."""
        size = bounds[-1]
        self.key = key
        self.bounds = bounds
        # A mapping of its own goes back to the system when it is let go of, and takes memory only where it is written to. A private one:
        # Python's default is a shared one, whose faults go through shmem (a tenth of a first read's CPU time). Not in huge pages: a
        # slab that is read here and there would take up to 2 MiB for each 256 KiB that are counted.
        self.view = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if size >= _MMAP_FROM else bytearray(size))
        self.state = bytearray(len(bounds) - 1)
        self.missing = len(bounds) - 1
        self.in_flight = 0
        self.landed = 0
        self.lot = trio.lowlevel.ParkingLot()
        self.dropped: ImageFSError | None = None

    def pieces(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first and the last (exclusive) of the pieces that hold bytes ``start`` to ``stop`` (exclusive)."""
        return bisect_right(self.bounds, start) - 1, bisect_left(self.bounds, stop)

    def set_ready(self, piece: int) -> int:
        """Show a piece to readers; return its size in bytes."""
        self.state[piece] = READY
        self.missing -= 1
        size = self.bounds[piece + 1] - self.bounds[piece]
        self.landed += size
        return size


class RamCache:
    """Slabs by name, least recently used first to go."""

    __slots__ = ("_limit", "_slabs", "evicted", "get", "used")

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes."""
        self._limit = limit
        self._slabs: OrderedDict[Hashable, Slab] = OrderedDict()
        # Bound once: this is looked up on every read.
        self.get = self._slabs.get
        self.used = 0
        self.evicted = 0

    def __len__(self) -> int:
        """Count the slabs."""
        return len(self._slabs)

    def touch(self, slab: Slab) -> None:
        """Note that a slab was used."""
        if slab.key in self._slabs:
            self._slabs.move_to_end(slab.key)

    def add(self, slab: Slab) -> None:
        """Take in a slab that has no memory yet."""
        self._slabs[slab.key] = slab

    def landed(self, slab: Slab, count: int) -> None:
        """Count ``count`` bytes that landed in a slab, and make room for them."""
        if self._slabs.get(slab.key) is slab:
            self.used += count
            if self.used > self._limit:
                self._evict(slab)

    def drop(self, slab: Slab) -> None:
        """Forget a slab; views of it stay valid."""
        if self._slabs.get(slab.key) is slab:
            del self._slabs[slab.key]
            self.used -= slab.landed

    def clear(self) -> None:
        """Forget everything that is not being filled."""
        for slab in [slab for slab in self._slabs.values() if not slab.in_flight]:
            self.drop(slab)

    def _evict(self, newest: Slab) -> None:
        over = self.used - self._limit
        victims = []
        for slab in self._slabs.values():
            if over <= 0:
                break
            if not slab.in_flight and slab is not newest:
                victims.append(slab)
                over -= slab.landed
        for slab in victims:
            self.evicted += slab.landed
            self.drop(slab)
