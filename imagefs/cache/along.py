"""Fetching what lies around a miss: what ``neighbours`` finds becomes GETs that nobody waits for yet.

Invariants: what is fetched along is neither in RAM nor on SSD nor on its way; one miss brings at most ``CONTENT_MAX`` bytes of content, and
no more than its image has credit for; never more than ``ALONG_MAX`` bytes of it are under way, and one miss more. That something of it
cannot be had, or that the map is unsound there, disturbs nobody who did not ask for it.
"""

from collections.abc import Generator
from itertools import islice
from typing import Final

import trio

from imagefs.cache.flights import FetchLog, Flight, Flights
from imagefs.cache.gets import Kind
from imagefs.cache.layout import EXTENTS_MAX, WINDOW, Lookup, ObjectRecord, Part, frame_part, parts_of
from imagefs.cache.link import Link
from imagefs.cache.neighbours import Reach
from imagefs.cache.pieces import Frames
from imagefs.cache.ram import RamCache
from imagefs.cache.store_reads import StoreReads
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import HOLE

ALONG_MAX: Final = 32 * 1024 * 1024
"""Bytes as stored that are on their way because they were fetched along, at most."""

CONTENT_MAX: Final = 16 * 1024 * 1024
"""Bytes of content that one miss brings along, at most: what compresses well is small on the link, and not in RAM."""

_LOOK: Final = 2 * CONTENT_MAX
"""Bytes of an object that are looked at in one direction, at most: a hole may be very long."""

_GET: Final = 1024 * 1024
"""Bytes that one GET moves, at most: the nearest should be there first."""


class Along:
    """Fetches along. Belongs to the trio thread."""

    def __init__(self, nursery: trio.Nursery, link: Link, ram: RamCache, flights: Flights, store: StoreReads, *, log: FetchLog) -> None:
        """Fetches belong to ``nursery``, and are ``store``'s."""
        self._nursery = nursery
        self._link = link
        self._ram = ram
        self._flights = flights
        self._store = store
        self._log = log
        self._reach = Reach()
        self._moving = 0

    def start(self, missed: Frames) -> None:
        """Start fetching what lies around frames that a reader misses, which are of one object."""
        latency = self._link.latency()
        reach = self._reach.around(latency)
        near = missed[0][0][0].record.lookup.neighbours
        near.missed(sum(frame.length for _, frame in missed))
        if near.is_to_be_built():
            self._nursery.start_soon(self._learn, missed[0][0][0].record.lookup)
        if latency is None or not reach or near.credit <= 0 or self._moving >= ALONG_MAX or not near.is_built:
            return
        wanted: Frames = []
        try:
            self._add_around(wanted, missed, reach, min(CONTENT_MAX, near.credit))
        except ImageFSError:
            # Whoever wants what is unsound will be told.
            pass
        except Exception as error:  # noqa: BLE001 # a guess must not fail who reads something else
            self._log.error("fetching_along_failed", error=str(error))
        if wanted:
            near.spend(sum(frame.length for _, frame in wanted))
            flights = self._flights.depart(wanted, demand=False, limit=_GET, kind=Kind.ALONG)
            moved = sum(run.end - run.start for run, _ in flights)
            self._moving += moved
            self._nursery.start_soon(self._bring, flights, moved, latency)

    async def _learn(self, lookup: Lookup) -> None:
        try:
            # What SSD has is told by its objects, and has to be known before anything is fetched along.
            await trio.to_thread.run_sync(lookup.members.build)
            await trio.to_thread.run_sync(lookup.neighbours.build)
        except Exception as error:  # noqa: BLE001 # a bug must not end the daemon
            self._log.error("neighbours_unknown", error=str(error))

    def _add_around(self, wanted: Frames, missed: Frames, reach: int, most: int) -> None:
        """Add what lies around frames of one object: more of it if it is large, and then what lies beside it in the packs."""
        part, piece = missed[0][0]
        record, number = part.record, part.frames[piece]
        left = reach
        # A part of a shared frame says where it is in that frame, and nothing of where in the object its reader is.
        own = [
            (part.base, part.slab.bounds[piece : piece + 2]) for (part, piece), _ in missed if part.slab and part.name == part.record.digest
        ]
        if own and record.lookup.neighbours.is_large(number):
            half = reach // 2
            after = self._add(wanted, self._onward(record, max(base + end for base, (_, end) in own)), half, most)
            before = self._add(wanted, self._backward(record, min(base + start for base, (start, _) in own)), half, most, backward=True)
            left -= max(after, before)
        self._add(wanted, self._beside(record, number, left), 2 * left, most)

    def _onward(self, record: ObjectRecord, start: int) -> "Generator[Part, None, None]":
        """Yield an object from byte ``start`` on, window by window."""
        first = start // WINDOW * WINDOW
        for base in range(first, min(record.size, first + _LOOK), WINDOW):
            yield from self._each(parts_of(record, max(base, start), min(base + WINDOW, record.size), self._ram))

    def _backward(self, record: ObjectRecord, end: int) -> "Generator[Part, None, None]":
        """Yield an object from byte ``end`` (exclusive) back to its beginning, window by window."""
        first = (end - 1) // WINDOW * WINDOW
        for base in range(first, max(-1, first - _LOOK), -WINDOW):
            yield from self._each(parts_of(record, base, min(base + WINDOW, end), self._ram)[::-1])

    def _beside(self, record: ObjectRecord, number: int, reach: int) -> "Generator[Part, None, None]":
        """Yield what lies within the reach of frame ``number`` in the packs."""
        lookup = record.lookup
        for _, frame, row in lookup.neighbours.around(number, reach):
            if row is None:
                yield from self._each([frame_part(lookup, frame, self._ram)])
            else:
                yield from self._each(parts_of(ObjectRecord(lookup, row), 0, row.size, self._ram))

    def _each(self, parts: list[Part]) -> "Generator[Part, None, None]":
        """Yield parts, and forget the slabs that were only made to be looked at."""
        try:
            yield from parts
        finally:
            for part in parts:
                if part.slab is not None:
                    self._ram.discard(part.slab)

    def _add(self, wanted: Frames, parts: "Generator[Part, None, None]", reach: int, most: int, *, backward: bool = False) -> int:
        """Add what of these parts neither RAM nor SSD has, and nothing is bringing; return the bytes as stored that were looked at.

        As far as ``reach`` of these, and until ``wanted`` has ``most`` bytes of content. ``backward``: the last piece of a part first.
        """
        flights = self._flights
        content = sum(frame.length for _, frame in wanted)
        stored = 0
        for part in islice(parts, EXTENTS_MAX):
            slab = part.slab
            if slab is None or slab.dropped is not None:
                continue
            pieces = range(*slab.pieces(part.start, part.stop))
            for piece in reversed(pieces) if backward else pieces:
                if part.frames[piece] == HOLE:
                    continue
                frame = part.frame(piece)
                stored += frame.stored
                if stored > reach or content + frame.length > most:
                    stored = max(stored, reach)
                    break
                if flights.is_lacking(part, piece, frame):
                    flights.mark(part, piece)
                    wanted.append(((part, piece), frame))
                    content += frame.length
            if stored >= reach:
                break
        parts.close()
        return min(stored, reach)

    async def _bring(self, flights: list[Flight], moved: int, latency: float) -> None:
        began = trio.current_time()
        came: list[bool] = []
        try:
            async with trio.open_nursery() as nursery:
                await self._store.bring(flights, nursery, came)
        finally:
            self._moving -= moved
        if all(came):
            self._reach.took(trio.current_time() - began, latency, moved)
