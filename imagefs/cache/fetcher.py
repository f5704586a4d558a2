"""Fetching: a read becomes views of slabs; what is missing there comes from SSD or from the store, one fetch a frame however many ask.

Invariants:

- a read gets exactly the verified bytes it asked for, or an exception: never zeros for data, never less. Bytes from SSD are verified like
  those from the store: what is wrong there is forgotten, counted, and comes from the store;
- every wait ends within the deadline, also when store or disk never answer; a slab that a hanging thread may still write to is dropped;
- a frame whose bytes are wrong is fetched once more and then refused for ``BAD_SECONDS`` without asking the store; one bad frame
  does not fail its neighbours;
- a fetch belongs to the fetcher's nursery, not to the reader that started it: a reader that gives up does not fail the others;
- what a reader waits for goes before what is read ahead, also when it was asked for ahead and is still queued.

Deciding is synchronous and on the trio thread, so no two readers can decide to fetch the same frame. Threads read, decode and verify. What
does not live here: which GETs (``planner``), how far ahead (``readahead``), how a GET is made to succeed (``link``), decoding
(``decode``), eviction (``ram``), files (``disk``).
"""

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier, Place
from imagefs.cache.disk_files import OpenFile
from imagefs.cache.layout import COUNT_MAX, ObjectRecord, Part, frame_part, parts_of
from imagefs.cache.link import Link, Ticket
from imagefs.cache.neighbours import Reach
from imagefs.cache.pieces import Decoder, Failures, Frames, Tag, chunked, key_of, mark, read_pieces, side_by_side
from imagefs.cache.planner import GET_MAX, Run, plan_runs
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import IN_FLIGHT, MISSING, READY, Slab
from imagefs.digest import Buffer
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, StoreError
from imagefs.format.objectmap import FrameRow
from imagefs.store.base import ByteRange, pack_key

BAD_SECONDS: Final = 2.0
"""How long a frame that could not be had is refused without asking again."""

_BAD_MAX: Final = 4096
_ALONG_GET: Final = 1024 * 1024
"""Bytes that a GET of what is fetched along moves, at most: the nearest should be there first."""

_ALONG_MAX: Final = 32 * 1024 * 1024
"""Bytes as stored that are on their way because they were fetched along, at most."""

_DISK_THREADS: Final = 8

NOWHERE: Final = 0
SSD: Final = 1
STORE: Final = 2


class FetchLog(Protocol):
    """Where a failed fetch is told: ``structlog``'s bound logger, as far as it is needed."""

    def error(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""


@dataclass(frozen=True, slots=True)
class _Got:
    """What a GET brought: ``data`` from byte ``start`` of the pack on; and what more GETs of it would need."""

    key: str
    data: memoryview
    start: int
    until: float


@dataclass(frozen=True, slots=True)
class _Load:
    """Pieces of one slab that a thread reads from a file of the SSD tier."""

    part: Part
    file: OpenFile
    frames: Frames


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deadline`` is in seconds; ``clock`` tells when a bad frame may be tried again."""
        self._nursery = nursery
        self._link = link
        self._ram = ram
        self._disk = disk
        self._counters = counters
        self._log = log
        self._deadline = deadline
        self._clock = clock
        self._reads = trio.CapacityLimiter(_DISK_THREADS)
        self._decodes = trio.CapacityLimiter(max(2, os.cpu_count() or 1))
        self._decoder = Decoder()
        self._reach = Reach()
        self._along = 0
        self._bad: dict[bytes, tuple[float, ImageFSError]] = {}
        # Pieces that are on their way from the store: whoever comes to wait for one promotes its GET.
        self._tickets: dict[tuple[Hashable, int], Ticket] = {}

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
        return slab.view[start:stop]

    async def read(self, record: ObjectRecord, offset: int, end: int) -> Buffer:
        """Return bytes ``offset`` to ``end`` (exclusive, within the object), fetching what is missing. Raises an ``ImageFSError``."""
        parts = parts_of(record, offset, end, self._ram)
        source = NOWHERE
        with trio.move_on_after(self._deadline) as scope:
            # All fetches start before the first is waited for, and what is waited for before what is read ahead.
            loads: list[_Load] = []
            source = self._start(parts, demand=True, own=loads)
            ahead, until = record.ahead.advance(offset, end, record.size)
            if ahead < until:
                self._read_ahead(record, ahead, until)
            # What comes from SSD, this task brings itself: a task of its own, and its wake-up, cost as much as a tenth of a megabyte.
            for load in loads[1:]:
                self._nursery.start_soon(self._load_chunk, load)
            for load in loads[:1]:
                await self._load_chunk(load)
            for part in parts:
                while (found := self._start((part,), demand=True)) != NOWHERE:
                    source = max(source, found)
                    await part.slab.lot.park()  # type: ignore[union-attr] # a part that waits has a slab
        if scope.cancelled_caught:
            raise DeadlineError(f"neither disk nor store answered within {self._deadline:g} s")
        counters = self._counters
        if source == STORE:
            counters.fetched_bytes += end - offset
        elif source == SSD:
            counters.ssd_bytes += end - offset
        else:
            counters.ram_bytes += end - offset
        return parts[0].view() if len(parts) == 1 else b"".join(part.view() for part in parts)

    def tier_of(self, record: ObjectRecord) -> str:
        """Say from which tier the whole of an object would be read now: ``ram``, ``ssd`` (and RAM, perhaps) or ``store``."""
        if record.row.extent_count > COUNT_MAX:
            return "store"
        tiers = {self._tier_of(part) for part in parts_of(record, 0, record.size, self._ram, create=False)}
        return "store" if "store" in tiers else "ssd" if "ssd" in tiers else "ram"

    def _tier_of(self, part: Part) -> str:
        slab = part.slab
        if part.zeros:
            return "ram"
        if slab is not None:
            first, last = slab.pieces(part.start, part.stop)
            if slab.has(first, last):
                return "ram"
        if self._disk is not None and self._disk.covers(part.name, part.base + part.start, part.base + part.stop):
            return "ssd"
        return "store"

    # -- deciding: synchronous, on the trio thread -----------------------------------------------------------------------------------

    def _read_ahead(self, record: ObjectRecord, start: int, end: int) -> None:
        """Start fetching a range that nobody waits for yet."""
        try:
            self._start(parts_of(record, start, end, self._ram), demand=False)
        except ImageFSError:
            # Whoever wants these bytes will be told.
            return

    def _start(self, parts: Iterable[Part], *, demand: bool, own: list[_Load] | None = None) -> int:
        """Start fetching what parts lack; return from where the slowest of it comes. Raises what a fetch of it has just met.

        With ``own``, what SSD has is appended there instead, for the caller to bring.
        """
        loads: list[_Load] = []
        wanted: Frames = []
        source = NOWHERE
        now = self._clock()
        for part in parts:
            slab = part.slab
            if slab is None:
                continue
            if slab.dropped is not None:
                raise slab.dropped
            first, last = slab.pieces(part.start, part.stop)
            state = slab.state
            if slab.has(first, last):
                if demand:
                    # What is read ahead is not used by that.
                    self._shows(part.record, slab, first, last)
                    self._ram.touch(slab)
                continue
            source = max(source, SSD)
            if slab.missing == len(state) == last - first:
                self._ram.fill(slab)
            stored: Frames = []
            for piece in range(first, last):
                if state[piece] == MISSING:
                    frame = part.frame(piece)
                    if self._is_on_disk(part, piece):
                        stored.append(((part, piece), frame))
                    elif self._is_good(frame, now, demand=demand):
                        wanted.append(((part, piece), frame))
                elif state[piece] == IN_FLIGHT and (ticket := self._tickets.get((slab.key, piece))) is not None:
                    source = STORE
                    if demand:
                        ticket.promote()
            if stored:
                loads += self._loads(part, stored, demand=demand)
        if own is not None:
            own += loads
        else:
            for load in loads:
                self._nursery.start_soon(self._load_chunk, load)
        if wanted:
            source = STORE
            self._fetch_all(wanted, demand=demand)
            if demand:
                self._fetch_along(wanted)
        return source

    def _shows(self, record: ObjectRecord, slab: Slab, first: int, last: int) -> bool:
        """Say whether pieces are there, and if so, note that they are read."""
        if not slab.has(first, last):
            return False
        if slab.unread and (fresh := slab.read(first, last)):
            count = sum(slab.bounds[piece + 1] - slab.bounds[piece] for piece in fresh)
            self._counters.prefetch_used_bytes += count
            record.lookup.neighbours.used(count)
        return True

    def _is_on_disk(self, part: Part, piece: int) -> bool:
        bounds = part.slab.bounds  # type: ignore[union-attr] # asked for pieces of a slab only
        return self._disk is not None and self._disk.covers(part.name, part.base + bounds[piece], part.base + bounds[piece + 1])

    def _is_good(self, frame: FrameRow, now: float, *, demand: bool) -> bool:
        """Say whether a frame may be asked for; for a reader, raise what it failed with a moment ago."""
        known = self._bad.get(frame.digest)
        if known is None:
            return True
        until, error = known
        if now >= until:
            del self._bad[frame.digest]
            return True
        if demand:
            raise error
        return False

    def _loads(self, part: Part, frames: Frames, *, demand: bool) -> list[_Load]:
        """Return what is to be read from SSD to bring pieces of one slab, which are on their way from now on."""
        file = self._disk.open(part.name) if self._disk is not None else None
        if file is None:
            self._fetch_all(frames, demand=True)
            return []
        mark(frames)
        return [_Load(part, file, chunk) for chunk in chunked(frames, demand=demand)]

    def _fetch_all(self, wanted: Frames, *, demand: bool) -> None:
        for run, ticket in self._plan(wanted, demand=demand):
            self._nursery.start_soon(self._fetch, run, ticket)

    def _plan(self, wanted: Frames, *, demand: bool, limit: int = GET_MAX) -> list[tuple[Run[Tag], Ticket]]:
        mark(wanted)
        planned = [(run, Ticket(demand=demand)) for run in plan_runs(wanted, limit=limit)]
        for run, ticket in planned:
            for (part, piece), _ in run.frames:
                self._tickets[key_of(part, piece)] = ticket
        return planned

    # -- what lies near a miss ------------------------------------------------------------------------------------------------------

    def _fetch_along(self, missed: Frames) -> None:
        """Start fetching what lies around frames that a reader misses, which are of one object."""
        latency = self._link.latency()
        reach = self._reach.around(latency)
        part, piece = missed[0][0]
        near = part.record.lookup.neighbours
        near.missed(sum(frame.length for _, frame in missed))
        if not near.is_built:
            self._nursery.start_soon(self._learn, part.record)
            return
        if latency is None or not reach or near.credit <= 0 or self._along >= _ALONG_MAX:
            return
        try:
            number = part.frames[piece]
            wanted = self._lacking(self._around_in_object(missed, reach // 2)) if near.is_large(number) else []
            left = reach - sum(frame.stored for _, frame in wanted) // 2
            if left > 0:
                wanted += self._lacking(self._around_in_packs(part.record, number, left))
        except ImageFSError:
            # Whoever wants these bytes will be told.
            return
        if wanted:
            near.spend(sum(frame.length for _, frame in wanted))
            self._nursery.start_soon(self._bring_along, self._plan(wanted, demand=False, limit=_ALONG_GET), latency)

    async def _learn(self, record: ObjectRecord) -> None:
        with contextlib.suppress(ImageFSError):
            await trio.to_thread.run_sync(record.lookup.neighbours.build)

    def _around_in_object(self, missed: Frames, reach: int) -> list[Part]:
        """Return what lies around pieces of a large object: more of it, as much on either side, what follows first."""
        places = [(part.base + part.slab.bounds[piece], frame) for (part, piece), frame in missed if part.slab is not None]
        start = min(place for place, _ in places)
        end = max(place + frame.length for place, frame in places)
        record = missed[0][0][0].record
        # The reach counts bytes as they are stored.
        count = reach * sum(frame.length for _, frame in missed) // sum(frame.stored for _, frame in missed)
        after = parts_of(record, end, min(record.size, end + count), self._ram)
        return after + parts_of(record, max(0, start - count), start, self._ram)[::-1]

    def _around_in_packs(self, record: ObjectRecord, number: int, reach: int) -> list[Part]:
        """Return what lies around frame ``number`` in the packs."""
        parts = []
        lookup = record.lookup
        for _, frame, row in lookup.neighbours.around(number, reach):
            if row is None:
                parts.append(frame_part(lookup, frame, self._ram))
            else:
                parts += parts_of(ObjectRecord(lookup, row), 0, row.size, self._ram)
        return parts

    def _lacking(self, parts: Iterable[Part]) -> Frames:
        """Return what of these parts neither RAM nor SSD has, and nothing is bringing."""
        wanted: Frames = []
        now = self._clock()
        for part in parts:
            slab = part.slab
            if slab is None or slab.dropped is not None:
                continue
            count = len(wanted)
            for piece in range(*slab.pieces(part.start, part.stop)):
                if slab.state[piece] == MISSING and not self._is_on_disk(part, piece):
                    frame = part.frame(piece)
                    if self._is_good(frame, now, demand=False):
                        wanted.append(((part, piece), frame))
            if len(wanted) == count and not (slab.landed or slab.in_flight):
                # It was made to be looked at.
                self._ram.drop(slab)
        return wanted

    async def _bring_along(self, planned: list[tuple[Run[Tag], Ticket]], latency: float) -> None:
        moved = sum(run.end - run.start for run, _ in planned)
        began = trio.current_time()
        self._along += moved
        try:
            async with trio.open_nursery() as nursery:
                for run, ticket in planned:
                    nursery.start_soon(self._fetch, run, ticket)
        finally:
            self._along -= moved
        self._reach.took(trio.current_time() - began, latency, moved)

    # -- from SSD -------------------------------------------------------------------------------------------------------------------

    async def _load_chunk(self, load: _Load) -> None:
        """Bring pieces from SSD into their slab; what cannot be had there, or is wrong, comes from the store."""
        part, file, frames = load.part, load.file, load.frames
        failed: Frames = frames
        slab = part.slab
        assert slab is not None
        is_over = False
        try:
            with trio.move_on_after(self._deadline):
                try:
                    failed = await trio.to_thread.run_sync(read_pieces, part, file, frames, abandon_on_cancel=True, limiter=self._reads)
                except Exception as error:  # noqa: BLE001 # a bug must neither end the daemon nor leave readers waiting
                    self._log.error("disk_read_failed", object=part.name.hex(), tier="ssd", error=str(error))
                is_over = True
        finally:
            if not is_over:
                # The thread that hangs may write to this slab whenever it wakes.
                slab.dropped = DeadlineError(f"the cache disk did not answer within {self._deadline:g} s")
                self._ram.drop(slab)
                self._fail([(tag, frame, slab.dropped) for tag, frame in frames])
        if not is_over:
            return
        bad = {piece for (_, piece), _ in failed}
        good = [item for item in frames if item[0][1] not in bad]
        self._settle(good, store=False)
        if failed:
            for (_, piece), frame in failed:
                self._log.error("frame_damaged", object=part.name.hex(), frame=frame.digest.hex(), tier="ssd", offset=part.base)
                self._counters.verify_failures += 1
                if self._disk is not None:
                    self._disk.bad(part.name, part.base + slab.bounds[piece], part.base + slab.bounds[piece + 1])
            self._fetch_all(failed, demand=True)

    # -- one GET --------------------------------------------------------------------------------------------------------------------

    async def _fetch(self, run: Run[Tag], ticket: Ticket) -> None:
        """Bring one run into its slabs. Whatever happens, no piece of it stays in flight and all who wait are woken."""
        until = trio.current_time() + self._deadline
        error: ImageFSError = DeadlineError(f"the store did not answer within {self._deadline:g} s")
        try:
            with trio.move_on_at(until):
                await self._bring(run, ticket, until)
        except ImageFSError as found:
            error = found
        except Exception as found:  # noqa: BLE001 # a bug must neither end the daemon nor leave readers waiting
            error = StoreError(f"unexpected {type(found).__name__} while fetching: {found}")
        # Only what is still this GET's: another may be bringing a piece that this one has failed to.
        mine = [(tag, frame, error) for tag, frame in run.frames if self._tickets.get(key_of(*tag)) is ticket]
        # What nobody waited for may well be had by who does: that its turn did not come says nothing of the frame.
        self._fail(mine, remember=ticket.demand)

    async def _bring(self, run: Run[Tag], ticket: Ticket, until: float) -> None:
        record = run.frames[0][0][0].record
        key = pack_key(record.lookup.objects.pack(run.pack).digest.hex())
        try:
            data = memoryview(await self._link.get(key, ByteRange(run.start, run.end), ticket, until=until))
        except IntegrityError:
            # The pack is shorter than it should be; but for the last frames, what is there can still be read.
            await self._bring_one_by_one(key, run.frames, until)
            return
        # Decoding takes longer than getting: what came in one GET is decoded in several threads, what is waited for first.
        async with trio.open_nursery() as nursery:
            for chunk in chunked(run.frames, demand=ticket.demand):
                nursery.start_soon(self._decode_chunk, _Got(key, data, run.start, until), chunk)

    async def _decode_chunk(self, got: "_Got", frames: Frames) -> None:
        failed = await self._decode_in_thread(got.data, got.start, frames)
        lost = {key_of(*tag) for tag, _, _ in failed}
        self._settle([item for item in frames if key_of(*item[0]) not in lost], store=True)
        if failed:
            self._counters.verify_failures += len(failed)
            # Once more: the bytes may have been damaged on the way.
            await self._bring_one_by_one(got.key, [(tag, frame) for tag, frame, _ in failed], got.until)

    async def _bring_one_by_one(self, key: str, frames: Frames, until: float) -> None:
        """Get frames by a GET each; those that cannot be had fail alone."""
        for item in frames:
            frame = item[1]
            try:
                byte_range = ByteRange(frame.offset, frame.offset + frame.stored)
                # Few and small: as if a reader waited for each, which is likely.
                data = memoryview(await self._link.get(key, byte_range, Ticket(demand=True), until=until))
                failed = await self._decode_in_thread(data, frame.offset, [item])
                self._counters.verify_failures += len(failed)
            except ImageFSError as error:
                failed = [(*item, error)]
            if failed:
                self._fail(failed)
            else:
                self._settle([item], store=True)

    async def _decode_in_thread(self, data: memoryview, start: int, frames: Frames) -> Failures:
        # Never left to itself, as it writes to slabs: it takes milliseconds and waits for nothing.
        return await trio.to_thread.run_sync(self._decoder.decode, data, start, frames, limiter=self._decodes)

    # -- what came of it ------------------------------------------------------------------------------------------------------------

    def _settle(self, frames: Frames, *, store: bool) -> None:
        """Show readers what has landed; what came from the store goes on to SSD."""
        counters, tickets = self._counters, self._tickets
        for run in side_by_side(frames):
            part, first = run[0][0]
            slab = part.slab
            assert slab is not None
            landed = 0
            for (_, piece), _frame in run:
                # What was given up meanwhile is no longer this fetch's.
                if slab.state[piece] == IN_FLIGHT:
                    ticket = tickets.pop((slab.key, piece), None)
                    ahead = ticket is not None and not ticket.demand
                    count = slab.set_ready(piece, ahead=ahead, saved=not store)
                    landed += count
                    slab.in_flight -= 1
                    if store:
                        counters.frames_fetched += 1
                        counters.prefetch_bytes += count if ahead else 0
            if store and self._disk is not None and landed == slab.bounds[first + len(run)] - slab.bounds[first]:
                self._land(self._disk, part, slab, first, first + len(run))
            self._ram.landed(slab, landed)
            slab.lot.unpark_all()

    def _land(self, disk: DiskTier, part: Part, slab: Slab, first: int, last: int) -> None:
        """Start keeping pieces from ``first`` to ``last`` (exclusive) on SSD."""
        start, end = slab.bounds[first], slab.bounds[last]
        place = Place(part.name, part.kind, part.size, part.holes)
        disk.land(place, part.base + start, slab.view[start:end], partial(self._ram.saved, slab, end - start))

    def _fail(self, failed: Failures, *, remember: bool = True) -> None:
        """Put failed pieces back to missing, and wake who waits; ``remember``: refuse them for a while, with the reason, and log it."""
        until = self._clock() + BAD_SECONDS
        for (part, piece), frame, error in failed:
            slab = part.slab
            if slab is None or slab.state[piece] != IN_FLIGHT:
                continue
            self._tickets.pop((slab.key, piece), None)
            slab.state[piece] = MISSING
            slab.in_flight -= 1
            if remember:
                if len(self._bad) >= _BAD_MAX:
                    self._bad.pop(next(iter(self._bad)))
                self._bad[frame.digest] = (until, error)
                self._tell(part, frame, error)
            if not slab.in_flight and not slab.landed:
                self._ram.drop(slab)
            slab.lot.unpark_all()

    def _tell(self, part: Part, frame: FrameRow, error: ImageFSError) -> None:
        lookup = part.record.lookup
        self._log.error(
            "frame_failed",
            manifest=lookup.name,
            object=part.record.digest.hex(),
            frame=frame.digest.hex(),
            pack=lookup.objects.pack(frame.pack).digest.hex(),
            tier="store",
            error=error.message,
        )
