"""Pieces that are on their way to their slabs, and what comes of each: the one place in which a piece changes its state.

Invariants:

- a piece is ``IN_FLIGHT`` from :meth:`Flights.mark` on, which is when it is decided to bring it, until it is settled, failed or unmarked:
  so nothing is brought twice, not even by two parts of one read that have the same slab;
- what is settled is verified, may be read from then on, is counted in the RAM tier, and is offered to SSD if it came from the store;
- what SSD's queue has no room for is owed: it is offered again when there is room, if RAM has it then;
- a frame that failed is refused for ``BAD_SECONDS`` without asking again; its neighbours are not.

All of it is synchronous and belongs to the trio thread. What does not live here: what is to be fetched (``fetcher``), and how
(``store_reads``, ``disk_reads``).
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier
from imagefs.cache.disk_queue import Place
from imagefs.cache.gets import Get, Kind
from imagefs.cache.layout import Part
from imagefs.cache.link import Ticket
from imagefs.cache.pieces import Failures, Frames, Tag, key_of, side_by_side
from imagefs.cache.planner import GET_MAX, Run, plan_runs
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import AHEAD, IN_FLIGHT, MISSING, READY, Slab
from imagefs.cache.starts import Starts
from imagefs.errors import ImageFSError, StoreError
from imagefs.format.objectmap import FrameRow

BAD_SECONDS: Final = 2.0
"""How long a frame that could not be had is refused without asking again."""

_BAD_MAX: Final = 4096
_OWED_MAX: Final = 16384

Flight = tuple[Run[Tag], Ticket]
"""One GET: the frames that it brings, and its place in the queue."""


class FetchLog(Protocol):
    """Where a failed fetch is told: ``structlog``'s bound logger, as far as it is needed."""

    def error(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""

    def exception(self, event: str, /, *args: Any, **fields: Any) -> Any:
        """Log it with the exception that is being handled."""


class Flights:
    """What is on its way, and what has just failed."""

    def __init__(
        self,
        ram: RamCache,
        disk: DiskTier | None,
        counters: ReadCounters,
        log: FetchLog,
        *,
        starts: Starts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``starts`` hear of GETs; ``clock`` tells when a bad frame may be tried again."""
        self._starts = starts
        self._ram = ram
        self._disk = disk
        self._counters = counters
        self._log = log
        self._clock = clock
        self._bad: dict[tuple[str, bytes], tuple[float, ImageFSError]] = {}  # errors without a traceback, which holds slabs and images
        # Pieces that are on their way from the store: whoever comes to wait for one promotes its GET.
        self._tickets: dict[tuple[Slab, int], Ticket] = {}
        # What SSD had no room for: by slab's name and first piece, the part without its slab, and the last piece (exclusive).
        self._owed: OrderedDict[tuple[Hashable, int], tuple[Part, int]] = OrderedDict()

    # -- before ---------------------------------------------------------------------------------------------------------------------

    def is_on_disk(self, part: Part, piece: int, *, use: bool = True) -> bool:
        """Say whether SSD seems to have a piece in one file; ``use``: it is to be read."""
        if self._disk is None or not part.name:
            return False
        bounds = part.slab.bounds  # type: ignore[union-attr] # asked for pieces of a slab only
        return self._disk.covers(part.name, part.base + bounds[piece], part.base + bounds[piece + 1], use=use)

    def is_kept(self, part: Part, piece: int) -> bool:
        """Say whether SSD seems to have a piece, or the objects in it: one stands for all, as they land together."""
        if part.name or self._disk is None:
            return self.is_on_disk(part, piece, use=False)
        one = part.record.lookup.members.sample(part.frames[piece])
        return one is not None and self._disk.covers(one.digest, 0, one.size, use=False)

    def is_lacking(self, part: Part, piece: int, frame: FrameRow) -> bool:
        """Say whether a piece, which is ``frame``, is neither here nor on its way, and may be asked for by who only guesses."""
        slab = part.slab
        missing = slab is not None and slab.state[piece] == MISSING
        return missing and not self.is_kept(part, piece) and self.is_good(part, frame, demand=False)

    def is_good(self, part: Part, frame: FrameRow, *, demand: bool) -> bool:
        """Say whether a frame may be asked for; for a reader, raise what it failed with a moment ago."""
        key = _name(part, frame)
        known = self._bad.get(key)
        if known is None:
            return True
        until, error = known
        if self._clock() >= until:
            del self._bad[key]
            return True
        if demand:
            raise anew(error)
        return False

    def mark(self, part: Part, piece: int) -> None:
        """Say that a missing piece is on its way."""
        slab = part.slab
        assert slab is not None
        slab.state[piece] = IN_FLIGHT
        slab.in_flight += 1

    def unmark(self, frames: Frames) -> None:
        """Say that pieces, which nobody can have come to wait for yet, are not on their way after all."""
        for (part, piece), _ in frames:
            slab = part.slab
            assert slab is not None
            slab.state[piece] = MISSING
            slab.in_flight -= 1
            self._ram.discard(slab)

    def ticket(self, slab: Slab, piece: int) -> Ticket | None:
        """Return the place in the queue of the GET that brings a piece, if one does."""
        return self._tickets.get((slab, piece))

    def awaited(self, part: Part) -> Get | None:
        """Return what is noted of the GET that a reader of a part waits for first."""
        slab = part.slab
        assert slab is not None
        for piece in range(*slab.pieces(part.start, part.stop)):
            if slab.state[piece] == IN_FLIGHT and (ticket := self._tickets.get((slab, piece))) is not None:
                return ticket.get
        return None

    def depart(self, wanted: Frames, *, demand: bool, limit: int = GET_MAX, gap: int = 0, kind: Kind | None = None) -> list[Flight]:
        """Return the GETs, of ``limit`` bytes at most, that are to bring these frames of one image, which are marked.

        ``gap`` is how many bytes that nobody wants one may bring between two frames. ``kind`` says why, where that is neither a reader
        who waits nor reading ahead of one.
        """
        owner = wanted[0][0][0].record.lookup.name if wanted else None
        planned = [(run, Ticket(demand=demand, owner=owner)) for run in plan_runs(wanted, limit=limit, gap=gap)]
        for run, ticket in planned:
            for (part, piece), _ in run.frames:
                self._tickets[key_of(part, piece)] = ticket
        if self._starts.running and owner is not None:
            self._note(planned, owner, (Kind.DEMAND if demand else Kind.AHEAD) if kind is None else kind)
        return planned

    def _note(self, flights: list[Flight], manifest: str, kind: Kind) -> None:
        """Have Starts hear of GETs that are planned."""
        for run, ticket in flights:
            try:
                pack = run.frames[0][0][0].record.lookup.objects.pack(run.pack).digest.hex()
            except ImageFSError:
                # Who wants what is unsound will be told.
                continue
            content = sum(frame.length for frame in {frame for _, frame in run.frames})
            ticket.get = Get(pack, run.start, run.end, content, kind)
            self._starts.fetching(manifest, ticket.get)

    # -- after ----------------------------------------------------------------------------------------------------------------------

    def settle(self, frames: Frames, *, store: bool) -> None:
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
                    ticket = tickets.pop((slab, piece), None)
                    ahead = ticket is not None and ticket.ahead
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

    def _land(self, disk: DiskTier, part: Part, slab: Slab, first: int, last: int) -> bool:
        """Start keeping pieces from ``first`` to ``last`` (exclusive) on SSD; False if there is no room now."""
        start, end = slab.bounds[first], slab.bounds[last]
        if part.name:
            place = Place(part.name, part.size, part.holes)
        else:
            place = Place(part.frame(first).digest, slab.bounds[-1], tuple, partial(part.record.lookup.members.of, part.frames[first]))
        if disk.land(place, part.base + start, slab.view[start:end], partial(self._saved, disk, slab, end - start)):
            return True
        if len(self._owed) >= _OWED_MAX:
            self._owed.popitem(last=False)
        # Without its slab, or what SSD is owed would be kept in memory whatever RAM's bound is.
        self._owed[slab.key, first] = replace(part, slab=None), last
        return False

    def keep(self, part: Part) -> None:
        """Offer what RAM has of a part to SSD again, which has lost it. What is on its way there too is written once."""
        slab = part.slab
        if self._disk is None or slab is None:
            return
        owed = {piece for (key, first), (_, last) in self._owed.items() if key == slab.key for piece in range(first, last)}
        for piece in range(*slab.pieces(part.start, part.stop)):
            if slab.state[piece] in {READY, AHEAD} and piece not in owed:
                slab.unsaved += slab.bounds[piece + 1] - slab.bounds[piece]
                self._land(self._disk, part, slab, piece, piece + 1)

    def _saved(self, disk: DiskTier, slab: Slab, count: int) -> None:
        """Take in that bytes are on SSD, and offer what is owed."""
        self._ram.saved(slab, count)
        while self._owed and disk.has_room:
            (key, first), (part, last) = self._owed.popitem(last=False)
            part.slab = self._ram.get(key)
            if part.slab is not None and part.slab.has(first, last) and not self._land(disk, part, part.slab, first, last):
                return

    def fail(self, failed: Failures, *, store: bool, remember: bool = True) -> None:
        """Put failed pieces back to missing, and wake who waits; ``remember``: refuse them for a while, with the reason, and log it.

        ``store``: it was the store, not SSD, that did not give them.
        """
        until = self._clock() + BAD_SECONDS
        for (part, piece), frame, error in failed:
            slab = part.slab
            if slab is None or slab.state[piece] != IN_FLIGHT:
                continue
            self._tickets.pop((slab, piece), None)
            slab.state[piece] = MISSING
            slab.in_flight -= 1
            self._ram.discard(slab)
            if remember:
                if len(self._bad) >= _BAD_MAX:
                    self._bad.pop(next(iter(self._bad)))
                self._bad[_name(part, frame)] = (until, anew(error))
            slab.lot.unpark_all()
            if remember:
                self._tell(part, frame, error, tier="store" if store else "ssd")

    def abandon(self, flight: Flight, error: ImageFSError) -> None:
        """Fail what a GET was to bring and has not; nothing of what others bring."""
        run, ticket = flight
        mine = [(tag, frame, error) for tag, frame in run.frames if self._tickets.get(key_of(*tag)) is ticket]
        # What nobody waited for may well be had by who does: that its turn did not come says nothing of the frame.
        self.fail(mine, store=True, remember=ticket.demand)

    def _tell(self, part: Part, frame: FrameRow, error: ImageFSError, *, tier: str) -> None:
        lookup = part.record.lookup
        try:
            pack = lookup.objects.pack(frame.pack).digest.hex()
        except ImageFSError:
            pack = ""
        self._log.error(
            "frame_failed",
            manifest=lookup.name,
            object=part.record.digest.hex(),
            frame=frame.digest.hex(),
            pack=pack,
            tier=tier,
            error=error.message,
        )


def anew(error: ImageFSError) -> ImageFSError:
    """Return an error that says the same, and refers to nothing: to be kept, or to be raised where the first one was raised already."""
    copy = type(error)(error.message, hint=error.hint)
    if isinstance(copy, StoreError) and isinstance(error, StoreError):
        copy.retry_after = error.retry_after
    return copy


def _name(part: Part, frame: FrameRow) -> tuple[str, bytes]:
    """Name a frame as an image has it: another image may know a place for it where it can be had."""
    return part.record.lookup.name, frame.digest
