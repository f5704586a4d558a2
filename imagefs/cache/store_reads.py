"""What comes from the store: one GET becomes verified pieces.

Invariants: whatever happens, no piece of a GET stays in flight, and it ends within the deadline; a frame whose bytes are wrong is got once
more, alone, and does not fail its neighbours. What does not live here: how a GET is made to succeed (``link``), decoding (``pieces``).
"""

import os
from dataclasses import dataclass

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.flights import Flight, Flights
from imagefs.cache.link import Link, Ticket
from imagefs.cache.pieces import Decoder, Failures, Frames, chunked, key_of
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, StoreError
from imagefs.store.base import ByteRange, pack_key


@dataclass(frozen=True, slots=True)
class _Got:
    """What a GET brought: ``data`` from byte ``start`` of the pack on; and what more GETs of it would need."""

    key: str
    data: memoryview
    start: int
    until: float
    demand: bool


class StoreReads:
    """Brings flights in. Belongs to the trio thread."""

    def __init__(self, link: Link, flights: Flights, counters: ReadCounters, *, deadline: float) -> None:
        """``deadline`` is in seconds."""
        self._link = link
        self._flights = flights
        self._counters = counters
        self._deadline = deadline
        # What nobody waits for is decoded by threads of its own: what a reader waits for never queues behind it.
        self._decodes = {demand: trio.CapacityLimiter(max(2, os.cpu_count() or 1)) for demand in (True, False)}
        self._decoder = Decoder()

    async def bring(self, flight: Flight) -> bool:
        """Bring one run into its slabs; return whether its GET succeeded. Whatever happens, no piece of it stays in flight."""
        until = trio.current_time() + self._deadline
        error: ImageFSError = DeadlineError(f"the store did not answer within {self._deadline:g} s")
        came = False
        try:
            with trio.move_on_at(until):
                await self._get(flight, until)
                came = True
        except ImageFSError as found:
            error = found
        except Exception as found:  # noqa: BLE001 # a bug must neither end the daemon nor leave readers waiting
            error = StoreError(f"unexpected {type(found).__name__} while fetching: {found}")
        self._flights.abandon(flight, error)
        return came

    async def _get(self, flight: Flight, until: float) -> None:
        run, ticket = flight
        record = run.frames[0][0][0].record
        key = pack_key(record.lookup.objects.pack(run.pack).digest.hex())
        try:
            data = memoryview(await self._link.get(key, ByteRange(run.start, run.end), ticket, until=until))
        except IntegrityError:
            # The pack is shorter than it should be; but for the last frames, what is there can still be read.
            await self._get_one_by_one(key, run.frames, until)
            return
        # Decoding takes longer than getting: what came in one GET is decoded in several threads, what is waited for first.
        async with trio.open_nursery() as nursery:
            for chunk in chunked(run.frames, demand=ticket.demand):
                nursery.start_soon(self._decode_chunk, _Got(key, data, run.start, until, ticket.demand), chunk)

    async def _decode_chunk(self, got: _Got, frames: Frames) -> None:
        failed = await self._decode(got.data, got.start, frames, demand=got.demand)
        lost = {key_of(*tag) for tag, _, _ in failed}
        self._flights.settle([item for item in frames if key_of(*item[0]) not in lost], store=True)
        if failed:
            self._counters.verify_failures += len(failed)
            # Once more: the bytes may have been damaged on the way.
            await self._get_one_by_one(got.key, [(tag, frame) for tag, frame, _ in failed], got.until)

    async def _get_one_by_one(self, key: str, frames: Frames, until: float) -> None:
        """Get frames by a GET each; those that cannot be had fail alone."""
        for item in frames:
            frame = item[1]
            try:
                byte_range = ByteRange(frame.offset, frame.offset + frame.stored)
                # Few and small: as if a reader waited for each, which is likely.
                data = memoryview(await self._link.get(key, byte_range, Ticket(demand=True), until=until))
                failed = await self._decode(data, frame.offset, [item], demand=True)
                self._counters.verify_failures += len(failed)
            except ImageFSError as error:
                failed = [(*item, error)]
            if failed:
                self._flights.fail(failed)
            else:
                self._flights.settle([item], store=True)

    async def _decode(self, data: memoryview, start: int, frames: Frames, *, demand: bool) -> Failures:
        # Never left to itself, as it writes to slabs: it takes milliseconds and waits for nothing.
        return await trio.to_thread.run_sync(self._decoder.decode, data, start, frames, limiter=self._decodes[demand])
