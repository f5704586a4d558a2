"""The prefetches of all images, and what was fetched by them and not read yet.

It is asked at every miss and every first read, so it answers at once where an image has none. Belongs to the trio thread. What does not
live here: what one does (``prefetch``).
"""

from collections.abc import Hashable, Iterable

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.flights import FetchLog, Flights
from imagefs.cache.layout import Lookup, ObjectRecord
from imagefs.cache.link import Link
from imagefs.cache.pieces import Frames
from imagefs.cache.prefetch import Prefetch
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import AHEAD, IN_FLIGHT, Slab
from imagefs.cache.store_reads import StoreReads


class Prefetches:
    """All of them, and what was fetched by them and not read yet."""

    def __init__(
        self,
        nursery: trio.Nursery,
        link: Link,
        ram: RamCache,
        flights: Flights,
        *,
        store: StoreReads,
        counters: ReadCounters,
        log: FetchLog,
    ) -> None:
        """Fetches belong to ``nursery``, and are ``store``'s."""
        self.nursery = nursery
        self.link = link
        self.ram = ram
        self.flights = flights
        self.store = store
        self.counters = counters
        self.log = log
        self.ahead: dict[tuple[Hashable, int], tuple[Prefetch, int]] = {}
        """By slab's name and piece: who has fetched it, and when it is needed. Until it is read, or its prefetch is dropped."""
        self._prefetches: dict[str, Prefetch] = {}

    def begin(self, lookup: Lookup) -> Prefetch:
        """Return a prefetch for an image, in place of one that it may have. Its ``run`` is the caller's to start."""
        self.drop(lookup.name)
        prefetch = self._prefetches[lookup.name] = Prefetch(self, lookup)
        return prefetch

    def drop(self, name: str) -> None:
        """Stop an image's prefetch, if it has one, and forget what it was about."""
        prefetch = self._prefetches.pop(name, None)
        if prefetch is not None:
            prefetch.stop()
            self.ahead = {key: of for key, of in self.ahead.items() if of[0] is not prefetch}

    def of(self, name: str) -> Prefetch | None:
        """Return an image's, also when it is over."""
        return self._prefetches.get(name)

    def names(self) -> list[str]:
        """Return the images that have one."""
        return list(self._prefetches)

    @property
    def running(self) -> int:
        """How many are not over."""
        return sum(not prefetch.is_over for prefetch in self._prefetches.values())

    def missed(self, frames: Frames) -> bool:
        """Note that a reader waits for frames of one image, which nothing was bringing; return whether a profile knows all of them."""
        if not self._prefetches:
            return False
        prefetch = self._prefetches.get(frames[0][0][0].record.lookup.name)
        return prefetch is not None and prefetch.missed(frames)

    def knows_better(self, record: ObjectRecord, offset: int) -> bool:
        """Say whether a profile knows how far an object is read, by a reader that has come to byte ``offset`` of it.

        So it is where the profile is trusted and knows the frame before that. What it knows of the rest comes by the plan, and as far as
        is known nothing else is needed. Of a reader that goes on nevertheless nothing is known.
        """
        prefetch = self._prefetches.get(record.lookup.name) if self._prefetches else None
        return prefetch is not None and prefetch.knows(record, offset - 1)

    def opened(self, name: str, digest: bytes) -> None:
        """Note that an object of an image is opened that the kernel has."""
        prefetch = self._prefetches.get(name)
        if prefetch is not None and not prefetch.is_over:
            prefetch.opened(digest)

    def used(self, slab: Slab, pieces: Iterable[int]) -> None:
        """Note that pieces are read for the first time."""
        for piece in pieces:
            found = self.ahead.pop((slab.key, piece), None)
            if found is not None:
                count = slab.bounds[piece + 1] - slab.bounds[piece]
                self.counters.profile_used_bytes += count
                found[0].used(found[1])

    def held(self, prefetch: Prefetch) -> int:
        """Count the bytes that one has fetched, or is fetching, that nobody has read, and that only RAM has."""
        total = 0
        for (key, piece), (owner, _) in self.ahead.items():
            slab = self.ram.get(key) if owner is prefetch else None
            if slab is not None and slab.unsaved | slab.in_flight and slab.state[piece] in {AHEAD, IN_FLIGHT}:
                total += slab.bounds[piece + 1] - slab.bounds[piece]
        return total
