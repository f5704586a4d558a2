"""Fetching: a read of an object becomes views of slabs, and what is missing there comes from the store, one fetch a frame however many ask.

Invariants:

- a read gets exactly the verified bytes it asked for, or an exception: never zeros for data, never less;
- every wait for the store ends within the deadline, also when the store never answers; then the slab is dropped, because the thread that
  hangs may still write to it;
- a frame whose bytes are wrong is fetched once more and then refused for ``BAD_SECONDS`` without asking the store; one bad frame
  does not fail its neighbours;
- a fetch belongs to the fetcher's nursery, not to the reader that started it: a reader that gives up does not fail the others.

Deciding is synchronous and on the trio thread, so no two readers can decide to fetch the same frame. Threads get, decode and verify,
and tell the trio thread what has landed. What does not live here: which GETs (``planner``), decoding (``decode``), eviction (``ram``).
"""

import threading
import time
from collections.abc import Iterable
from typing import Final, Protocol

import trio
import zstandard

from imagefs.cache.counters import ReadCounters
from imagefs.cache.decode import decode_into
from imagefs.cache.layout import COUNT_MAX, Lookup, ObjectRecord, Part, parts_of
from imagefs.cache.planner import Run, plan_runs
from imagefs.cache.ram import IN_FLIGHT, MISSING, READY, RamCache, Slab
from imagefs.digest import Buffer
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, StoreError
from imagefs.format.objectmap import FrameRow
from imagefs.store.base import ByteRange, ObjectStore, pack_key

BAD_SECONDS: Final = 2.0
"""How long a frame that could not be had is refused without asking again."""

_BAD_MAX: Final = 4096
_TELL_BYTES: Final = 1024 * 1024


class FetchLog(Protocol):
    """Where a failed fetch is told: ``structlog``'s bound logger, as far as it is needed."""

    def error(self, event: str, /, **fields: object) -> object:
        """Log an event with fields."""


class Fetcher:
    """Serves objects from the RAM tier and fills it from the store. Belongs to the trio thread."""

    def __init__(
        self, nursery: trio.Nursery, store: ObjectStore, ram: RamCache, counters: ReadCounters, log: FetchLog, *, deadline: float, threads: int = 16
    ) -> None:
        """``deadline`` is in seconds; ``threads`` bounds the GETs at once."""
        self._nursery = nursery
        self._store = store
        self._ram = ram
        self._counters = counters
        self._log = log
        self._deadline = deadline
        self._limiter = trio.CapacityLimiter(threads)
        self._token = trio.lowlevel.current_trio_token()
        self._local = threading.local()
        self._bad: dict[bytes, tuple[float, ImageFSError]] = {}

    # -- for readers ----------------------------------------------------------------------------------------------------------------

    def cached(self, record: ObjectRecord, offset: int, end: int) -> memoryview | None:
        """Return bytes ``offset`` to ``end`` (exclusive) of an object if they lie in one slab and are there. This is the warm path: no waiting."""
        key, base = record.slab_at(offset)
        slab = self._ram.get(key)
        if slab is None:
            return None
        start, stop = offset - base, end - base
        if stop > slab.bounds[-1]:
            return None
        if slab.missing:
            state = slab.state
            first, last = slab.pieces(start, stop)
            if state.count(READY, first, last) != last - first:
                return None
        self._ram.touch(slab)
        record.next_offset = end
        self._counters.ram_bytes += end - offset
        return slab.view[start:stop]

    async def read(self, record: ObjectRecord, offset: int, end: int) -> Buffer:
        """Return bytes ``offset`` to ``end`` (exclusive, within the object), fetching what is missing. Raises an ``ImageFSError``."""
        sequential = offset == record.next_offset and offset > 0
        record.next_offset = end
        parts = parts_of(record, offset, end, self._ram)
        waited = False
        with trio.move_on_after(self._deadline) as scope:
            # All fetches start before the first is waited for.
            for part in parts:
                waited |= self._start(record, part, sequential=sequential)
            for part in parts:
                while self._start(record, part, sequential=False):
                    await part.slab.lot.park()  # type: ignore[union-attr] # a part that waits has a slab
        if scope.cancelled_caught:
            raise DeadlineError(f"the store did not answer within {self._deadline:g} s")
        if waited:
            self._counters.fetched_bytes += end - offset
        else:
            self._counters.ram_bytes += end - offset
        return parts[0].view() if len(parts) == 1 else b"".join(part.view() for part in parts)

    def tier_of(self, record: ObjectRecord) -> str:
        """Say which tier the whole of an object would be read from now: ``ram`` or ``store``."""
        if record.row.extent_count > COUNT_MAX:
            return "store"
        return "ram" if all(self._is_ready(part) for part in parts_of(record, 0, record.size, self._ram, create=False)) else "store"

    # -- deciding: synchronous, on the trio thread -----------------------------------------------------------------------------------

    @staticmethod
    def _is_ready(part: Part) -> bool:
        slab = part.slab
        if slab is None:
            return part.zeros
        first, last = slab.pieces(part.start, part.stop)
        return slab.state.count(READY, first, last) == last - first

    def _start(self, record: ObjectRecord, part: Part, *, sequential: bool) -> bool:
        """Start fetching what a part lacks; return whether there is something to wait for. Raises what a fetch of it has just met."""
        slab = part.slab
        if slab is None:
            return False
        if slab.dropped is not None:
            raise slab.dropped
        first, last = slab.pieces(part.start, part.stop)
        state = slab.state
        if state.count(READY, first, last) == last - first:
            self._ram.touch(slab)
            return False
        wanted = [(piece, part.frame(piece)) for piece in range(first, last) if state[piece] == MISSING]
        if wanted:
            now = time.monotonic()
            for _, frame in wanted:
                self._refuse_bad(frame, now)
            if sequential:
                # The rest of the window comes in the same GET.
                ahead = ((piece, part.frame(piece)) for piece in range(last, len(state)) if state[piece] == MISSING)
                wanted += [item for item in ahead if item[1].digest not in self._bad]
            for piece, _ in wanted:
                state[piece] = IN_FLIGHT
            slab.in_flight += len(wanted)
            for run in plan_runs(wanted):
                self._nursery.start_soon(self._fetch, record.lookup, record.digest, slab, run)
        return True

    def _refuse_bad(self, frame: FrameRow, now: float) -> None:
        known = self._bad.get(frame.digest)
        if known is None:
            return
        until, error = known
        if now < until:
            raise error
        del self._bad[frame.digest]

    # -- one GET --------------------------------------------------------------------------------------------------------------------

    async def _fetch(self, lookup: Lookup, digest: bytes, slab: Slab, run: Run) -> None:
        """Bring one run into its slab. Whatever happens, no piece of it stays in flight and all who wait are woken."""
        failed: list[tuple[int, FrameRow, ImageFSError]] = []
        job = _Job(self, lookup, slab, run)
        with trio.move_on_after(self._deadline) as scope:
            try:
                failed = await trio.to_thread.run_sync(job.work, abandon_on_cancel=True, limiter=self._limiter)
            except Exception as error:  # noqa: BLE001 # a bug in a thread must not end the daemon, nor leave readers waiting
                wrapped = StoreError(f"unexpected {type(error).__name__} while fetching: {error}")
                failed = [(piece, frame, wrapped) for piece, frame in run.frames]
        if scope.cancelled_caught:
            late = DeadlineError(f"the store did not answer within {self._deadline:g} s")
            failed = [(piece, frame, late) for piece, frame in run.frames if slab.state[piece] == IN_FLIGHT]
            # The thread that hangs may write to this slab whenever it wakes.
            slab.dropped = late
            self._ram.drop(slab)
        self._count(job)
        self._fail(lookup, digest, slab, run, failed)

    def _count(self, job: "_Job") -> None:
        self._counters.store_gets += job.gets
        self._counters.store_bytes += job.moved
        self._counters.verify_failures += job.mismatches

    def _fail(self, lookup: Lookup, digest: bytes, slab: Slab, run: Run, failed: Iterable[tuple[int, FrameRow, ImageFSError]]) -> None:
        until = time.monotonic() + BAD_SECONDS
        for piece, frame, error in failed:
            if slab.state[piece] == IN_FLIGHT:
                slab.state[piece] = MISSING
                slab.in_flight -= 1
            if len(self._bad) >= _BAD_MAX:
                self._bad.pop(next(iter(self._bad)))
            self._bad[frame.digest] = (until, error)
            self._log.error(
                "frame_failed",
                manifest=lookup.name,
                object=digest.hex(),
                frame=frame.digest.hex(),
                pack=_pack_name(lookup, run),
                tier="store",
                error=error.message,
            )
        if not slab.in_flight and not slab.landed:
            self._ram.drop(slab)
        slab.lot.unpark_all()

    def tell(self, slab: Slab, pieces: list[int]) -> None:
        """Let the trio thread show ``pieces`` to readers. Called from fetching threads."""
        self._token.run_sync_soon(self._landed, slab, pieces)

    def _landed(self, slab: Slab, pieces: list[int]) -> None:
        count = 0
        for piece in pieces:
            # After the deadline nobody waits for it, and the slab is gone.
            if slab.state[piece] == IN_FLIGHT and slab.dropped is None:
                slab.in_flight -= 1
                count += slab.set_ready(piece)
        self._counters.frames_fetched += len(pieces)
        self._ram.landed(slab, count)
        slab.lot.unpark_all()

    # -- for the threads ------------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> ObjectStore:
        """Where packs are."""
        return self._store

    def decompressor(self) -> zstandard.ZstdDecompressor:
        """Return the calling thread's own zstd context."""
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found


def _pack_name(lookup: Lookup, run: Run) -> str:
    try:
        return lookup.objects.pack(run.pack).digest.hex()
    except IntegrityError:
        return f"number {run.pack}, which the object map does not have"


class _Job:
    """One run, in a thread: get, decode, verify. Figures are read by the trio thread when the thread is done or given up."""

    __slots__ = ("_fetcher", "_key", "_lookup", "_run", "_slab", "_told", "gets", "mismatches", "moved")

    def __init__(self, fetcher: Fetcher, lookup: Lookup, slab: Slab, run: Run) -> None:
        self._fetcher = fetcher
        self._lookup = lookup
        self._key = ""
        self._slab = slab
        self._run = run
        self._told: list[int] = []
        self.gets = 0
        self.moved = 0
        self.mismatches = 0

    def work(self) -> list[tuple[int, FrameRow, ImageFSError]]:
        """Bring the run; return the pieces that could not be had, and why."""
        run = self._run
        try:
            self._key = pack_key(self._lookup.objects.pack(run.pack).digest.hex())
            data = memoryview(self._get(run.start, run.end))
        except IntegrityError as error:
            if len(run.frames) == 1:
                return [(*run.frames[0], error)]
            # The pack is shorter than it should be: what is there can still be read.
            return self._decode(None)
        except ImageFSError as error:
            return [(piece, frame, error) for piece, frame in run.frames]
        return self._decode(data)

    def _get(self, start: int, end: int) -> bytes:
        self.gets += 1
        data = self._fetcher.store.get(self._key, ByteRange(start, end))
        self.moved += len(data)
        return data

    def _decode(self, data: memoryview | None) -> list[tuple[int, FrameRow, ImageFSError]]:
        failed: list[tuple[int, FrameRow, ImageFSError]] = []
        bounds, view = self._slab.bounds, self._slab.view
        size = 0
        for piece, frame in self._run.frames:
            target = view[bounds[piece] : bounds[piece + 1]]
            at = frame.offset - self._run.start
            try:
                self._decode_frame(target, None if data is None else data[at : at + frame.stored], frame)
            except ImageFSError as error:
                failed.append((piece, frame, error))
                continue
            self._told.append(piece)
            size += frame.length
            if size >= _TELL_BYTES:
                self._tell()
                size = 0
        self._tell()
        return failed

    def _decode_frame(self, target: memoryview, stored: memoryview | None, frame: FrameRow) -> None:
        decompressor = self._fetcher.decompressor()
        if stored is not None:
            try:
                decode_into(target, stored, frame, decompressor)
            except IntegrityError:
                self.mismatches += 1
            else:
                return
        # Once more: the bytes may have been damaged on the way.
        again = memoryview(self._get(frame.offset, frame.offset + frame.stored))
        try:
            decode_into(target, again, frame, decompressor)
        except IntegrityError:
            self.mismatches += 1
            raise

    def _tell(self) -> None:
        if self._told:
            self._fetcher.tell(self._slab, self._told)
            self._told = []


