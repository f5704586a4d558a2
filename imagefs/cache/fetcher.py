"""Fetching: a read becomes views of slabs; what is missing there comes from SSD or from the store, one fetch a frame however many ask.

Invariants:

- a read gets exactly the verified bytes it asked for, or an exception: never zeros for data, never less. Bytes from SSD are verified like
  those from the store: what is wrong there is forgotten, counted, and comes from the store;
- every wait ends within the deadline, also when store or disk never answer; a slab that a hanging thread may still write to is dropped;
- a frame whose bytes are wrong is fetched once more and then refused for ``BAD_SECONDS`` without asking the store; one bad frame
  does not fail its neighbours;
- a fetch belongs to the fetcher's nursery, not to the reader that started it: a reader that gives up does not fail the others;
- what a reader waits for goes before what is read ahead, also when it was asked for ahead and is still queued.

Deciding is synchronous and on the trio thread, so no two readers can decide to fetch the same frame. What does not live here: what becomes
of a piece (``flights``), how it comes from SSD or the store (``disk_reads``, ``store_reads``), what else is fetched with it (``along``),
how far ahead (``readahead``), eviction (``ram``).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from imagefs.cache.along import Along
from imagefs.cache.completion import Completion
from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_reads import DiskReads, Load
from imagefs.cache.flights import FetchLog, Flights, anew
from imagefs.cache.gets import Get
from imagefs.cache.layout import COUNT_MAX, ObjectRecord, Part, parts_of
from imagefs.cache.link import Link
from imagefs.cache.pieces import Frames
from imagefs.cache.prefetches import Prefetches
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import IN_FLIGHT, MISSING, READY, Slab
from imagefs.cache.starts import RAM, Starts, tell
from imagefs.cache.store_reads import StoreReads
from imagefs.digest import Buffer
from imagefs.errors import DeadlineError, ImageFSError

NOWHERE: Final = 0
SSD: Final = 1
STORE: Final = 2

_BRING: Final = 16 << 20
"""Bytes of an object that are under way at once where nobody waits for it."""


class Fetcher:
    """Serves objects from the RAM tier and fills it. Belongs to the trio thread."""

    def __init__(
        self,
        nursery: trio.Nursery,
        link: Link,
        ram: RamCache,
        disk: DiskTier | None,
        counters: ReadCounters,
        *,
        log: FetchLog,
        deadline: float,
        starts: Starts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deadline`` is in seconds; ``clock`` tells when a bad frame may be tried again.

        ``starts`` hear of GETs; which of them hear of reads, the records say.
        """
        self._nursery = nursery
        self._link = link
        self._ram = ram
        self._disk = disk
        self._counters = counters
        self._deadline = deadline
        self._log = log
        self._flights = Flights(ram, disk, counters, log, starts=starts or Starts(), clock=clock)
        self._from_disk = DiskReads(disk, ram, self._flights, counters, log, deadline=deadline)
        self._from_store = StoreReads(link, self._flights, counters, deadline=deadline)
        self._along = Along(nursery, link, ram, self._flights, self._from_store, log=log)
        self.prefetches = Prefetches(nursery, link, ram, self._flights, store=self._from_store, counters=counters, log=log)
        """What is fetched because profiles name it."""

    # -- for readers ----------------------------------------------------------------------------------------------------------------

    def cached(self, record: ObjectRecord, offset: int, end: int) -> memoryview | None:
        """Return bytes ``offset`` to ``end`` (exclusive) of an object if they are there, in one slab: the warm path, no waiting."""
        key, base = record.slab_at(offset)
        slab = self._ram.get(key)
        if slab is None:
            return None
        start, stop = offset - base, end - base
        if stop > slab.bounds[-1]:
            return None
        if slab.missing or slab.unread:
            first, last = slab.pieces(start, stop)
            if slab.state.count(READY, first, last) != last - first and not self._shows(record, slab, first, last):
                return None
        self._ram.touch(slab)
        if end < record.size:
            ahead, until = record.ahead.advance(offset, end, record.size)
            if ahead < until:
                self._read_ahead(record, ahead, until)
        self._counters.ram_bytes += end - offset
        record.tally.ram += end - offset
        if record.starts:
            tell(record, (offset, end), RAM, time.monotonic())
        return slab.view[start:stop]

    async def read(self, record: ObjectRecord, offset: int, end: int) -> Buffer:
        """Return bytes ``offset`` to ``end`` (exclusive, within the object), fetching what is missing. Raises an ``ImageFSError``."""
        began = time.monotonic() if record.starts else 0.0
        get: Get | None = None
        parts = parts_of(record, offset, end, self._ram, is_local=self.is_local)
        source = NOWHERE
        with trio.move_on_after(self._deadline) as scope:
            # All fetches start before the first is waited for, and what is waited for before what is read ahead.
            loads: list[Load] = []
            source = self._start(parts, demand=True, own=loads)
            if source == STORE and self._disk is not None:
                self._disk.reader_waits()
            ahead, until = record.ahead.advance(offset, end, record.size)
            if ahead < until:
                self._read_ahead(record, ahead, until)
            # What comes from SSD, this task brings itself: a task of its own, and its wake-up, cost as much as a tenth of a megabyte.
            self._start_loads(loads[1:])
            for load in loads[:1]:
                await self._load(load)
            for part in parts:
                while (found := self._start((part,), demand=True)) != NOWHERE:
                    source = max(source, found)
                    if began:
                        get = self._flights.awaited(part) or get
                    await part.slab.lot.park()  # type: ignore[union-attr] # a part that waits has a slab
        if scope.cancelled_caught:
            raise DeadlineError(f"the {self._awaited(parts)} did not answer within {self._deadline:g} s")
        self._count(record, source, end - offset)
        if began:
            tell(record, (offset, end), source + RAM, began, get)
        return parts[0].view() if len(parts) == 1 else b"".join(part.view() for part in parts)

    def _count(self, record: ObjectRecord, source: int, length: int) -> None:
        counters, tally = self._counters, record.tally
        if source == STORE:
            counters.fetched_bytes += length
            tally.store += length
        elif source == SSD:
            counters.ssd_bytes += length
            tally.ssd += length
        else:
            counters.ram_bytes += length
            tally.ram += length

    def _awaited(self, parts: Iterable[Part]) -> str:
        """Name what a reader of parts waited for in vain: what is to come from the store has a ticket."""
        for part in parts:
            slab = part.slab
            if slab is not None and any(
                slab.dropped is not None or (slab.state[piece] == IN_FLIGHT and self._flights.ticket(slab, piece) is None)
                for piece in range(*slab.pieces(part.start, part.stop))
            ):
                return "cache disk"
        return "store"

    def tier_of(self, record: ObjectRecord) -> str:
        """Say from which tier the whole of an object would be read now: ``ram``, ``ssd`` (and RAM, perhaps) or ``store``."""
        if record.row.extent_count > COUNT_MAX:
            return "store"
        tiers = {
            self._tier_of(part)
            for start, end in record.stretches()
            for part in parts_of(record, start, end, self._ram, create=False, is_local=self.is_local)
        }
        return "store" if "store" in tiers else "ssd" if "ssd" in tiers else "ram"

    def is_local(self, record: ObjectRecord) -> bool:
        """Say whether SSD seems to have all of an object."""
        return self._disk is not None and self._disk.covers(record.digest, 0, record.size, use=False)

    def is_native(self, record: ObjectRecord) -> bool:
        """Say whether the kernel finds all of an object on SSD."""
        return self._disk is not None and self._disk.is_native(record.digest, record.size)

    async def bring(self, record: ObjectRecord) -> None:
        """Bring an object to SSD, which has lost it; nobody waits for it. What cannot be had in time is left to who reads it.

        Raises an ``ImageFSError``.
        """
        for start in range(0, record.size, _BRING):
            parts = parts_of(record, start, min(start + _BRING, record.size), self._ram, is_local=self.is_local)
            with trio.move_on_after(self._deadline):
                # What RAM has, or gets from the file that is lost, comes from nowhere again, and would not land.
                await self._arrived(parts)
                for part in parts:
                    self._flights.keep(part)
                self._start(parts, demand=False)
                await self._arrived(parts)

    def completion(self, rate: int) -> Completion | None:
        """Return what brings images whole, at ``rate`` bytes as stored a second; None where there is no SSD tier to bring them to."""
        if self._disk is None:
            return None
        parts = self._link, self._ram, self._disk, self._flights
        return Completion(*parts, store=self._from_store, counters=self._counters, log=self._log, rate=rate)

    async def _arrived(self, parts: Iterable[Part]) -> None:
        """Wait until nothing of parts is on its way."""
        for slab in (part.slab for part in parts if part.slab is not None):
            while slab.in_flight:
                await slab.lot.park()

    def _tier_of(self, part: Part) -> str:
        slab = part.slab
        if part.zeros:
            return "ram"
        if slab is not None:
            first, last = slab.pieces(part.start, part.stop)
            if slab.has(first, last):
                return "ram"
        if self._disk is not None and part.name and self._disk.covers(part.name, part.base + part.start, part.base + part.stop, use=False):
            return "ssd"
        return "store"

    # -- deciding: synchronous, on the trio thread -----------------------------------------------------------------------------------

    def _read_ahead(self, record: ObjectRecord, start: int, end: int) -> None:
        """Start fetching a range that nobody waits for yet."""
        if self.prefetches.knows_better(record, start):
            record.ahead.decline(start, end)
            return
        try:
            self._start(parts_of(record, start, end, self._ram, is_local=self.is_local), demand=False)
        except ImageFSError:
            # Whoever wants these bytes will be told.
            return
        except Exception as error:  # noqa: BLE001 # a guess must not fail who reads something else
            self._log.error("reading_ahead_failed", object=record.digest.hex(), error=str(error))

    def _start(self, parts: Sequence[Part], *, demand: bool, own: list[Load] | None = None) -> int:
        """Start fetching what parts lack; return from where the slowest of it comes. Raises what a fetch of it has just met.

        With ``own``, what SSD has is appended there instead, for the caller to bring.
        """
        loads: list[Load] = []
        wanted: Frames = []
        try:
            source = self._sort_out(parts, loads, wanted, demand=demand)
        except BaseException:
            self._flights.unmark(wanted)
            for part in parts:
                if part.slab is not None:
                    self._ram.discard(part.slab)
            # What SSD has is on its way by now, and others may wait for it.
            self._start_loads(loads)
            raise
        if own is None:
            self._start_loads(loads)
        else:
            own += loads
        if wanted:
            source = STORE
            self._fetch(wanted, demand=demand)
            # What lies around what a profile knows is either on its way by that, or not needed.
            if demand and not self.prefetches.missed(wanted):
                self._along.start(wanted)
        return source

    def _sort_out(self, parts: Iterable[Part], loads: list[Load], wanted: Frames, *, demand: bool) -> int:
        """Add what parts lack to what is to be read from SSD, or to what is wanted from the store; return what there is to wait for."""
        source = NOWHERE
        flights = self._flights
        for part in parts:
            slab = part.slab
            if slab is None:
                continue
            if slab.dropped is not None:
                raise anew(slab.dropped)
            first, last = slab.pieces(part.start, part.stop)
            state = slab.state
            if slab.has(first, last):
                if demand:
                    # What is read ahead is not used by that.
                    self._shows(part.record, slab, first, last)
                    self._ram.touch(slab)
                continue
            source = max(source, SSD)
            if last - first == len(state):
                self._ram.fill(slab)
            stored: Frames = []
            for piece in range(first, last):
                if state[piece] == MISSING:
                    frame = part.frame(piece)
                    if flights.is_on_disk(part, piece):
                        stored.append(((part, piece), frame))
                    elif flights.is_good(part, frame, demand=demand):
                        flights.mark(part, piece)
                        wanted.append(((part, piece), frame))
                elif state[piece] == IN_FLIGHT and (ticket := flights.ticket(slab, piece)) is not None:
                    source = STORE
                    if demand:
                        ticket.promote()
            if stored:
                for (_, piece), _frame in stored:
                    flights.mark(part, piece)
                found = self._from_disk.depart(part, stored, demand=demand)
                loads += found
                wanted += () if found else stored
        return source

    def _start_loads(self, loads: list[Load]) -> None:
        for load in loads:
            self._nursery.start_soon(self._load, load)

    def _shows(self, record: ObjectRecord, slab: Slab, first: int, last: int) -> bool:
        """Say whether pieces are there, and if so, note that they are read."""
        if not slab.has(first, last):
            return False
        if slab.unread and (fresh := slab.read(first, last)):
            count = sum(slab.bounds[piece + 1] - slab.bounds[piece] for piece in fresh)
            self._counters.prefetch_used_bytes += count
            record.lookup.neighbours.used(count)
            self.prefetches.used(slab, fresh)
        return True

    def _fetch(self, wanted: Frames, *, demand: bool) -> None:
        """Start bringing frames from the store."""
        self._nursery.start_soon(self._from_store.bring, self._flights.depart(wanted, demand=demand), self._nursery, [])

    async def _load(self, load: Load) -> None:
        """Bring pieces from SSD, and those that cannot be had there from the store."""
        if failed := await self._from_disk.bring(load):
            self._fetch(failed, demand=load.demand)
