"""What comes from the SSD tier: files become verified pieces.

Invariants: whatever happens, no piece stays in flight, and a read ends within the deadline; bytes that are wrong are forgotten by the tier
and counted; a slab that a hanging thread may still write to is dropped.
"""

from dataclasses import dataclass
from typing import Final

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_files import OpenFile
from imagefs.cache.flights import FetchLog, Flights
from imagefs.cache.layout import Part
from imagefs.cache.pieces import Frames, chunked, read_pieces
from imagefs.cache.ram import RamCache
from imagefs.errors import DeadlineError

_THREADS: Final = 8
_THREADS_AHEAD: Final = 4


@dataclass(frozen=True, slots=True)
class Load:
    """Pieces of one slab that a thread reads from a file of the SSD tier; ``demand``: a reader waits for them."""

    part: Part
    file: OpenFile
    frames: Frames
    demand: bool


class DiskReads:
    """Brings loads in. Belongs to the trio thread."""

    def __init__(
        self, disk: DiskTier | None, ram: RamCache, flights: Flights, counters: ReadCounters, log: FetchLog, *, deadline: float
    ) -> None:
        """``deadline`` is in seconds."""
        self._disk = disk
        self._ram = ram
        self._flights = flights
        self._counters = counters
        self._log = log
        self._deadline = deadline
        # What is read ahead has threads of its own: what a reader waits for never queues behind it.
        self._threads = {True: trio.CapacityLimiter(_THREADS), False: trio.CapacityLimiter(_THREADS_AHEAD)}

    def depart(self, part: Part, frames: Frames, *, demand: bool) -> list[Load]:
        """Return what is to be read to bring pieces of one slab, which are marked; nothing if their file has gone."""
        file = self._disk.open(part.name) if self._disk is not None else None
        if file is None:
            return []
        return [Load(part, file, chunk, demand) for chunk in chunked(frames, demand=demand)]

    async def bring(self, load: Load) -> Frames:
        """Bring pieces into their slab; return those that cannot be had here, or are wrong, which are still in flight."""
        part, slab, frames = load.part, load.part.slab, load.frames
        assert slab is not None
        failed: Frames = frames
        is_over = False
        # The reader's own deadline may be a moment earlier.
        until = min(trio.current_effective_deadline(), trio.current_time() + self._deadline)
        try:
            with trio.move_on_at(until):
                try:
                    failed = await trio.to_thread.run_sync(
                        read_pieces, part, load.file, frames, abandon_on_cancel=True, limiter=self._threads[load.demand]
                    )
                except Exception as error:  # noqa: BLE001 # a bug must neither end the daemon nor leave readers waiting
                    self._log.error("disk_read_failed", object=part.name.hex(), tier="ssd", error=str(error))
                is_over = True
        finally:
            if not is_over:
                # The thread that hangs may write to this slab whenever it wakes.
                slab.dropped = DeadlineError(f"the cache disk did not answer within {self._deadline:g} s")
                self._ram.drop(slab)
                # That a read is given up because the daemon ends says nothing of the disk.
                is_late = trio.current_time() >= until
                self._flights.fail([(tag, frame, slab.dropped) for tag, frame in frames], store=False, remember=is_late)
        if not is_over:
            return []
        bad = {piece for (_, piece), _ in failed}
        self._flights.settle([item for item in frames if item[0][1] not in bad], store=False)
        for (_, piece), frame in failed:
            self._log.error("frame_damaged", object=part.name.hex(), frame=frame.digest.hex(), tier="ssd", offset=part.base)
            self._counters.verify_failures += 1
            if self._disk is not None:
                self._disk.bad(part.name, part.base + slab.bounds[piece], part.base + slab.bounds[piece + 1])
        return failed
