"""The RAM tier: decoded frames in slabs, bounded by bytes.

A *slab* is one contiguous buffer: the frames of one aligned window of a large object, or one frame that small objects share. A read that
lies in a slab is answered with a view of it and copies nothing. Slabs are named by digests, so images share them.

Invariants:

- the bytes of a piece that is there never change, whatever eviction does (``imagefs.cache.slab``);
- bytes are counted when a piece lands: a slab's untouched rest is address space, not memory. What a slab takes besides them counts as long
  as it is here, or a million slabs of a few bytes would take a gigabyte;
- the total is at most the limit, plus what is in flight: a slab that is being filled is never evicted, or single flight would break;
- a slab that the SSD holds as well goes before one that only the store has, as far as ``_LOOK`` slabs from the old end of a queue.

What goes is decided by S3-FIFO (Yang et al., SOSP 2023): new slabs enter a small queue, a tenth of the bytes, and move on to the main one
only if they were used again; so what is read once, however much, pushes out only what else was read once. The names of slabs that left the
small queue are remembered in a *ghost* queue, and go to the main one when they come back. A slab of 4 MiB is read in several requests,
which are one use: uses count as such only when ``_limit / _ONE_USE`` bytes have landed between them. What was never used is *fresh*: it
was read ahead, and pushing it out just before its reader comes would fetch it twice. So up to a quarter of all bytes, fresh ones do not
count against the small queue, and go after those that were used once. ``bench/ram_trace.py`` compares policies.

What came from SSD, whole, and has been read is of little use here: it is there still, and the mount's own page cache holds it. So when
such slabs hold more than a sixteenth of all bytes and one more is to be filled, the oldest of them goes and its buffer serves the new one.

All of it belongs to the trio thread; fetching threads write to ``view`` where a piece is ``IN_FLIGHT``, and nowhere else. What does not
live here: where pieces come from (``imagefs.cache.fetcher``).
"""

from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import Final

from imagefs.cache.slab import SLAB_MAX, Pool, Slab

_SMALL_SHARE: Final = 10
_FRESH_SHARE: Final = 4
_FROM_DISK_SHARE: Final = 16
_ONE_USE: Final = 16
_HITS_MAX: Final = 3
_LOOK: Final = 64
_GHOSTS_MAX: Final = 65536

Queue = OrderedDict[Hashable, Slab]
"""Slabs by name, the oldest first."""


class RamCache:
    """Slabs by name. See the module's docstring for which goes first."""

    __slots__ = (
        "_fresh",
        "_from_disk",
        "_from_disk_bytes",
        "_ghost_bytes",
        "_ghosts",
        "_limit",
        "_main",
        "_one_use",
        "_pool",
        "_slabs",
        "_small",
        "_small_used",
        "clock",
        "evicted",
        "get",
        "used",
    )

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes."""
        self._slabs: dict[Hashable, Slab] = {}
        self._small: Queue = OrderedDict()
        self._main: Queue = OrderedDict()
        self._ghosts: OrderedDict[Hashable, int] = OrderedDict()
        self._ghost_bytes = 0
        # In bytes: all of the small queue, and what of it was never used.
        self._small_used = 0
        self._fresh = 0
        self._pool = Pool()
        # Slabs in buffers that go round and came from SSD, whole, and their bytes.
        self._from_disk: Queue = OrderedDict()
        self._from_disk_bytes = 0
        # Bound once: this is looked up on every read.
        self.get = self._slabs.get
        self.used = 0
        self.evicted = 0
        # Bytes that have landed so far: the time in which the distance between two uses is measured.
        self.clock = 0
        self._limit = limit
        self._one_use = limit // _ONE_USE

    def __len__(self) -> int:
        """Count the slabs."""
        return len(self._slabs)

    @property
    def limit(self) -> int:
        """How many bytes there may be."""
        return self._limit

    def set_limit(self, limit: int) -> None:
        """Allow ``limit`` bytes from now on."""
        self._limit = limit
        self._one_use = limit // _ONE_USE
        self._evict(limit, None)
        self._pool.clear()

    def shrink(self, count: int) -> int:
        """Give up ``count`` bytes now, as far as they are not in flight; return how many it were. The limit stays."""
        before = self.used
        self._evict(max(before - count, 0), None)
        self._pool.clear()
        return before - self.used

    def touch(self, slab: Slab) -> None:
        """Note that a slab was used."""
        if self.clock >= slab.due:
            self._use(slab)

    def add(self, slab: Slab) -> None:
        """Take in a slab that has no memory yet."""
        key = slab.key
        old = self._slabs.get(key)
        if old is not None:
            self.drop(old)
        weight = self._ghosts.pop(key, None)
        slab.main = weight is not None
        if weight is not None:
            self._ghost_bytes -= weight
        self._slabs[key] = slab
        (self._main if slab.main else self._small)[key] = slab
        self._count(slab, slab.weight)

    def landed(self, slab: Slab, count: int) -> None:
        """Count ``count`` bytes that landed in a slab, and make room for them."""
        if self._slabs.get(slab.key) is slab:
            self._count(slab, count)
            self.clock += count
            if slab.is_round and not slab.missing and not slab.unsaved:
                self._from_disk[slab.key] = slab
                self._from_disk_bytes += slab.landed
            if self.used > self._limit:
                self._evict(self._limit, slab)

    def fill(self, slab: Slab) -> None:
        """Say that all of a slab will be written: it gets a buffer for that, unless anything of it is there, or on its way."""
        if slab.in_flight or slab.missing != len(slab.state):
            return
        if slab.bounds[-1] == SLAB_MAX and not self._pool and self._from_disk_bytes * _FROM_DISK_SHARE > self._limit:
            self._recycle()
        slab.fill(self._pool)

    def saved(self, slab: Slab, count: int) -> None:
        """Note that ``count`` bytes of a slab are now on SSD."""
        slab.unsaved -= count

    def _recycle(self) -> None:
        """Drop the oldest slab that came from SSD and was read."""
        for slab in islice(self._from_disk.values(), _LOOK):
            if not slab.unread:
                self.drop(slab)
                return

    def drop(self, slab: Slab) -> None:
        """Forget a slab; views of it stay valid."""
        key = slab.key
        if self._slabs.get(key) is slab:
            del self._slabs[key]
            if self._from_disk.pop(key, None) is not None:
                self._from_disk_bytes -= slab.landed
            self._count(slab, -slab.weight)
            del (self._main if slab.main else self._small)[key]

    def discard(self, slab: Slab) -> None:
        """Forget a slab that has nothing, and that nothing is coming to: it was made to be looked at."""
        if not (slab.in_flight or slab.landed):
            self.drop(slab)

    def clear(self) -> None:
        """Forget everything that is not being filled."""
        for slab in [slab for slab in self._slabs.values() if not slab.in_flight]:
            self.drop(slab)
        self._pool.clear()

    def _count(self, slab: Slab, count: int) -> None:
        self.used += count
        if not slab.main:
            self._small_used += count
            if not slab.due:
                self._fresh += count

    def _use(self, slab: Slab) -> None:
        if not slab.due and not slab.main and self._slabs.get(slab.key) is slab:
            self._fresh -= slab.weight
        slab.due = self.clock + self._one_use + 1
        if slab.hits < _HITS_MAX:
            slab.hits += 1

    # -- what goes ------------------------------------------------------------------------------------------------------------------

    def _evict(self, target: int, newest: Slab | None) -> None:
        """Drop slabs until there are at most ``target`` bytes, or none that may go; ``newest`` may not."""
        while self.used > target:
            victim = self._victim(newest)
            if victim is None:
                return
            if not victim.on_disk:
                victim = self._on_disk(newest) or victim
            self.evicted += victim.weight
            self.drop(victim)
            if not victim.main:
                self._remember(victim)

    def _victim(self, newest: Slab | None) -> Slab | None:
        spared = min(self._fresh, self._limit // _FRESH_SHARE)
        if (self._small_used - spared) * _SMALL_SHARE > self._limit:
            return self._from_small(newest) or self._from_main(newest)
        # The last: all of the small queue may just have moved to the main one.
        return self._from_main(newest) or self._from_small(newest) or self._from_main(newest)

    def _from_small(self, newest: Slab | None) -> Slab | None:
        """Return the oldest slab of the small queue that was used once, or else never; those that were used again move to the main one."""
        small = self._small
        fresh: Slab | None = None
        for _ in range(len(small)):
            key, slab = next(iter(small.items()))
            if slab.in_flight or slab is newest:
                small.move_to_end(key)
            elif not slab.due:
                if fresh is None:
                    if self._fresh * _FRESH_SHARE > self._limit:
                        return slab
                    fresh = slab
                small.move_to_end(key)
            elif slab.hits > 1:
                del small[key]
                self._small_used -= slab.weight
                slab.hits = 0
                slab.main = True
                self._main[key] = slab
            else:
                return slab
        return fresh

    def _from_main(self, newest: Slab | None) -> Slab | None:
        """Return the oldest slab of the main queue that was not used since it was last looked at."""
        main = self._main
        skipped = 0
        while skipped < len(main):
            key, slab = next(iter(main.items()))
            main.move_to_end(key)
            if slab.in_flight or slab is newest:
                skipped += 1
            elif slab.hits:
                slab.hits -= 1
                skipped = 0
            else:
                return slab
        return None

    def _on_disk(self, newest: Slab | None) -> Slab | None:
        """Return an old slab that was used, and would be read from SSD again, not from the store."""
        for queue in (self._small, self._main):
            for slab in islice(queue.values(), _LOOK):
                if slab.on_disk and slab.due and not slab.in_flight and slab is not newest:
                    return slab
        return None

    def _remember(self, slab: Slab) -> None:
        """Keep the name of a slab that left the small queue, and of as many as the main one could hold."""
        self._ghosts[slab.key] = slab.weight
        self._ghost_bytes += slab.weight
        while self._ghost_bytes > self._limit or len(self._ghosts) > _GHOSTS_MAX:
            self._ghost_bytes -= self._ghosts.popitem(last=False)[1]
