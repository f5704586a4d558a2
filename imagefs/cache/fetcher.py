"""Fetching: a read of an object becomes views of slabs, and what is missing there comes from the store, one fetch a frame however many ask.

Invariants:

- a read gets exactly the verified bytes it asked for, or an exception: never zeros for data, never less;
- every wait for the store ends within the deadline, also when the store never answers; then the slab is dropped, because the thread that
  hangs may still write to it;
- a frame whose bytes are wrong is fetched once more and then refused for ``BAD_SECONDS`` without asking the store; one bad frame
  does not fail its neighbours;
- a fetch belongs to the fetcher's nursery, not to the reader that started it: a reader that gives up does not fail the others.

Deciding is synchronous and on the trio thread, so no two readers can decide to fetch the same frame. Threads get, decode and verify. What
does not live here: which GETs (``planner``), decoding (``decode``), eviction (``ram``).
"""

import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

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
from imagefs.store.base import ByteRange, pack_key

BAD_SECONDS: Final = 2.0
"""How long a frame that could not be had is refused without asking again."""

_BAD_MAX: Final = 4096
_CHUNK: Final = 1024 * 1024

Frames = list[tuple[int, FrameRow]]
"""(piece, frame) pairs."""

Failures = list[tuple[int, FrameRow, ImageFSError]]
"""Pieces that could not be had, and why."""


class PackSource(Protocol):
    """Where packs are: a store, as far as it is needed. See ``ObjectStore.get``."""

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        """Return exactly the bytes of the range, or raise. Blocks."""


class FetchLog(Protocol):
    """Where a failed fetch is told: ``structlog``'s bound logger, as far as it is needed."""

    def error(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""


class Fetcher:
    """Serves objects from the RAM tier and fills it from the store. Belongs to the trio thread."""

    def __init__(
        self,
        nursery: trio.Nursery,
        store: PackSource,
        ram: RamCache,
        counters: ReadCounters,
        log: FetchLog,
        *,
        deadline: float,
        threads: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``deadline`` is in seconds; ``threads`` bounds the GETs at once; ``clock`` tells when a bad frame may be tried again."""
        self._nursery = nursery
        self._store = store
        self._ram = ram
        self._counters = counters
        self._log = log
        self._deadline = deadline
        self._clock = clock
        self._gets = trio.CapacityLimiter(threads)
        self._decodes = trio.CapacityLimiter(max(2, os.cpu_count() or 1))
        self._local = threading.local()
        self._bad: dict[bytes, tuple[float, ImageFSError]] = {}

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
            now = self._clock()
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
        job = _Job(self, lookup, slab, run)
        with trio.move_on_after(self._deadline) as scope:
            await self._guarded(job, digest, run.frames, self._bring, job, digest)
        if scope.cancelled_caught:
            late = DeadlineError(f"the store did not answer within {self._deadline:g} s")
            # The thread that hangs may write to this slab whenever it wakes.
            slab.dropped = late
            self._ram.drop(slab)
            self._fail(job, digest, [(piece, frame, late) for piece, frame in run.frames if slab.state[piece] == IN_FLIGHT])
        self._counters.store_gets += job.gets
        self._counters.store_bytes += job.moved
        self._counters.verify_failures += job.mismatches

    async def _guarded(self, job: "_Job", digest: bytes, frames: Frames, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Wait for a step; a bug in it must neither end the daemon nor leave readers waiting."""
        try:
            await function(*args)
        except Exception as error:  # noqa: BLE001 # see above
            wrapped = StoreError(f"unexpected {type(error).__name__} while fetching: {error}")
            self._fail(job, digest, [(piece, frame, wrapped) for piece, frame in frames if job.slab.state[piece] == IN_FLIGHT])

    async def _bring(self, job: "_Job", digest: bytes) -> None:
        frames = job.run.frames
        if job.run.end - job.run.start <= _CHUNK:
            self._settle(job, digest, frames, await self._in_thread(self._gets, job.get_and_decode))
            return
        failed = await self._in_thread(self._gets, job.get)
        if failed:
            self._settle(job, digest, frames, failed)
            return
        # Decoding takes longer than getting: what came in one GET is decoded in several threads, what is waited for first.
        async with trio.open_nursery() as nursery:
            for chunk in _chunks(frames):
                nursery.start_soon(self._guarded, job, digest, chunk, self._decode_chunk, job, digest, chunk)

    async def _decode_chunk(self, job: "_Job", digest: bytes, frames: Frames) -> None:
        self._settle(job, digest, frames, await self._in_thread(self._decodes, job.decode, frames))

    @staticmethod
    async def _in_thread(limiter: trio.CapacityLimiter, function: Callable[..., Failures], *args: object) -> Failures:
        return await trio.to_thread.run_sync(lambda: function(*args), abandon_on_cancel=True, limiter=limiter)

    def _settle(self, job: "_Job", digest: bytes, frames: Frames, failed: Failures) -> None:
        """Show readers what has landed, and fail the rest."""
        slab = job.slab
        lost = {piece for piece, _, _ in failed}
        count = 0
        for piece, _ in frames:
            if piece not in lost:
                slab.in_flight -= 1
                count += slab.set_ready(piece)
        self._counters.frames_fetched += len(frames) - len(lost)
        self._ram.landed(slab, count)
        if failed:
            self._fail(job, digest, failed)
        else:
            slab.lot.unpark_all()

    def _fail(self, job: "_Job", digest: bytes, failed: Failures) -> None:
        """Put failed pieces back to missing, remember why for a while, tell the log, and wake who waits."""
        slab = job.slab
        until = self._clock() + BAD_SECONDS
        for piece, frame, error in failed:
            slab.state[piece] = MISSING
            slab.in_flight -= 1
            if len(self._bad) >= _BAD_MAX:
                self._bad.pop(next(iter(self._bad)))
            self._bad[frame.digest] = (until, error)
            self._log.error(
                "frame_failed",
                manifest=job.lookup.name,
                object=digest.hex(),
                frame=frame.digest.hex(),
                pack=job.key.rpartition("/")[2],
                tier="store",
                error=error.message,
            )
        if not slab.in_flight and not slab.landed:
            self._ram.drop(slab)
        slab.lot.unpark_all()

    # -- for the threads ------------------------------------------------------------------------------------------------------------

    @property
    def store(self) -> PackSource:
        """Where packs are."""
        return self._store

    def decompressor(self) -> zstandard.ZstdDecompressor:
        """Return the calling thread's own zstd context."""
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found


def _chunks(frames: Frames) -> list[Frames]:
    """Split frames, in their order, into runs of about ``_CHUNK`` bytes of content."""
    chunks: list[Frames] = []
    size = _CHUNK
    for item in frames:
        if size >= _CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += item[1].length
    return chunks


class _Job:
    """One run, in threads: get, decode, verify. Figures are read by the trio thread when the threads are done or given up."""

    __slots__ = ("_data", "_fetcher", "gets", "key", "lookup", "mismatches", "moved", "run", "slab")

    def __init__(self, fetcher: Fetcher, lookup: Lookup, slab: Slab, run: Run) -> None:
        self._fetcher = fetcher
        self._data: memoryview | None = None
        self.lookup = lookup
        self.slab = slab
        self.run = run
        self.key = ""
        self.gets = 0
        self.moved = 0
        self.mismatches = 0

    def get(self) -> Failures:
        """Get the run's bytes; return the pieces that cannot be had, and why."""
        run = self.run
        try:
            self.key = pack_key(self.lookup.objects.pack(run.pack).digest.hex())
            self._data = memoryview(self._get(run.start, run.end))
        except IntegrityError as error:
            # The pack is shorter than it should be; but for the last frames, what is there can still be read.
            return [(*run.frames[0], error)] if len(run.frames) == 1 else []
        except ImageFSError as error:
            return [(piece, frame, error) for piece, frame in run.frames]
        return []

    def get_and_decode(self) -> Failures:
        """Do all of a small run in one thread."""
        return self.get() or self.decode(self.run.frames)

    def decode(self, frames: Frames) -> Failures:
        """Decode some of the run's frames into the slab; return the ones that failed, and why."""
        failed: Failures = []
        bounds, view, data = self.slab.bounds, self.slab.view, self._data
        for piece, frame in frames:
            target = view[bounds[piece] : bounds[piece + 1]]
            at = frame.offset - self.run.start
            try:
                self._decode_frame(target, None if data is None else data[at : at + frame.stored], frame)
            except ImageFSError as error:
                failed.append((piece, frame, error))
        return failed

    def _get(self, start: int, end: int) -> bytes:
        self.gets += 1
        data = self._fetcher.store.get(self.key, ByteRange(start, end))
        self.moved += len(data)
        return data

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
