"""What comes from the store: one GET becomes verified pieces.

Invariants: whatever happens, no piece of a GET stays in flight, and it ends within the deadline; a frame whose bytes are wrong is got once
more, alone, and does not fail its neighbours; GETs that are started together come to the link in their order, demand first; a GET for one
frame of a flight is demand if the flight is. What does not live here: how a GET is made to succeed (``link``), decoding (``pieces``).
"""

import os
from collections.abc import Callable

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.decode import Work
from imagefs.cache.flights import Flight, Flights
from imagefs.cache.link import Link, Ticket
from imagefs.cache.pieces import Decoder, Failures, Frames, chunked, key_of
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, StoreError
from imagefs.store.base import ByteRange, pack_key


def _nobody(_flight: Flight) -> None:
    """Tell nobody."""


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

    async def bring(
        self, flights: list[Flight], nursery: trio.Nursery, came: list[bool], arrived: Callable[[Flight], None] = _nobody
    ) -> None:
        """Bring runs into their slabs, by tasks of ``nursery``, and add for each whether its GET succeeded to ``came``.

        ``arrived`` is told of each whose GET has its bytes, or has none, before they are decoded.
        """
        # Tasks that are started at once run in any order, and what is wanted last would take a place at the gate from what is wanted
        # first. So each GET starts the one behind it, and prefetch lets the demand go ahead that was started with it.
        flight, *others = flights
        if not flight[1].demand:
            await trio.lowlevel.checkpoint()
        if others:
            nursery.start_soon(self.bring, others, nursery, came, arrived)
        came.append(await self._bring(flight, arrived))

    async def _bring(self, flight: Flight, arrived: Callable[[Flight], None]) -> bool:
        """Bring one run; return whether its GET succeeded. Whatever happens, no piece of it stays in flight."""
        until = trio.current_time() + self._deadline
        error: ImageFSError = DeadlineError(f"the store did not answer within {self._deadline:g} s")
        came = False
        try:
            with trio.move_on_at(until):
                await self._get(flight, until, arrived)
                came = True
        except ImageFSError as found:
            error = found
        except Exception as found:  # noqa: BLE001 # a bug must neither end the daemon nor leave readers waiting
            error = StoreError(f"unexpected {type(found).__name__} while fetching: {found}")
        self._flights.abandon(flight, error)
        return came

    async def _get(self, flight: Flight, until: float, arrived: Callable[[Flight], None]) -> None:
        run, ticket = flight
        record = run.frames[0][0][0].record
        key = pack_key(record.lookup.objects.pack(run.pack).digest.hex())
        try:
            data = memoryview(await self._link.get(key, ByteRange(run.start, run.end), ticket, until=until))
        except IntegrityError:
            # The pack is shorter than it should be; but for the last frames, what is there can still be read.
            await self._get_one_by_one(key, run.frames, ticket, until)
            return
        finally:
            arrived(flight)
        wrong: Failures = []
        if ticket.get is not None:
            ticket.get.has_arrived()

        async def decode(frames: Frames) -> None:
            wrong.extend(await self._decode(data, run.start, frames, ticket))

        # Decoding takes longer than getting: what came in one GET is decoded in several threads, what is waited for first.
        async with trio.open_nursery() as nursery:
            for chunk in chunked(run.frames, demand=ticket.demand):
                nursery.start_soon(decode, chunk)
        if ticket.get is not None:
            ticket.get.is_decoded()
        # Once more: the bytes may have been damaged on the way.
        await self._get_one_by_one(key, [(tag, frame) for tag, frame, _ in wrong], ticket, until)

    async def _get_one_by_one(self, key: str, frames: Frames, ticket: Ticket, until: float) -> None:
        """Get frames of a flight by a GET each, one after the other as they have but one ticket; those that cannot be had fail alone."""
        for item in frames:
            frame = item[1]
            try:
                data = memoryview(await self._link.get(key, ByteRange(frame.offset, frame.offset + frame.stored), ticket, until=until))
            except ImageFSError as error:
                # That the turn of what nobody waits for did not come says nothing of the frame. An answer does.
                self._flights.fail([(*item, error)], store=True, remember=ticket.demand or not error.retryable)
            else:
                self._flights.fail(await self._decode(data, frame.offset, [item], ticket), store=True)

    async def _decode(self, data: memoryview, start: int, frames: Frames, ticket: Ticket) -> Failures:
        """Decode frames that lie in ``data``, which begins at byte ``start`` of the pack; show those that are right, return the others."""
        # Never left to itself, as it writes to slabs: it takes milliseconds and waits for nothing.
        work = None if ticket.get is None else Work()
        failed = await trio.to_thread.run_sync(self._decoder.decode, data, start, frames, work, limiter=self._decodes[ticket.demand])
        if ticket.get is not None and work is not None:
            ticket.get.took(work.decode_ns, work.verify_ns)
        wrong = {key_of(*tag) for tag, _, _ in failed}
        self._flights.settle([item for item in frames if key_of(*item[0]) not in wrong], store=True)
        self._counters.verify_failures += len(failed)
        return failed
