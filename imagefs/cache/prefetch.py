"""Fetching ahead of a program what earlier starts of it touched: a profile's frames become GETs that nobody waits for yet.

A prefetch belongs to an image, follows one profile at a time, and is over when all of that was asked for. What it fetches is like anything
that is fetched ahead: it goes behind what readers wait for, becomes demand when one comes to wait for it, lands on SSD, and what cannot be
had or is wrong fails nobody but who asks for it.

Invariants:

- what RAM or SSD has, or what is on its way, is not asked for;
- never more than ``Trust.window`` bytes as stored are under way, and one step more; never more than a ``HELD``th of the RAM tier's bytes of
  content are only in RAM and unread;
- where somebody else waits for the link, nothing is asked for that is needed later than ``SOON`` milliseconds from where the program is;
- a prefetch ends: when nothing is left, when it is stopped, or when for ``PATIENCE`` seconds it could ask for nothing.

All of it belongs to the trio thread, but the reading of a profile and of the map, which is done in a thread. What does not live here: in
which order (``prefetch_plan``), whether the profile is any good (``prefetch_trust``), and where profiles are from (``imagefs.daemon``).
"""

from collections.abc import Hashable, Iterable
from typing import Final

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.flights import FetchLog, Flight, Flights
from imagefs.cache.gets import Kind
from imagefs.cache.lacking import Lacking
from imagefs.cache.layout import Lookup, ObjectRecord
from imagefs.cache.link import Link
from imagefs.cache.pieces import Frames, Tag
from imagefs.cache.planner import GET_MAX, Run
from imagefs.cache.prefetch_plan import GAP, Plan, Step, steps_of
from imagefs.cache.prefetch_trust import GET_COST, Trust
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import AHEAD, IN_FLIGHT, MISSING, Slab
from imagefs.cache.store_reads import StoreReads
from imagefs.errors import ImageFSError
from imagefs.format.profile import Access

SOON: Final = 5000
"""Milliseconds of a profile's time that are fetched ahead where others wait for the link."""

HELD: Final = 4
"""The share of the RAM tier that may be fetched, unread, and nowhere else: more of it would be pushed out again before it is read."""

DECODING: Final = 64 * 1024 * 1024
"""Bytes of content that are under way or wait to be decoded, at most, for more to be asked for: the cores may be slower than the link."""

PATIENCE: Final = 120.0
"""Seconds without a GET after which a prefetch that is not over ends: what has not been needed by then is fetched when it is read."""

_GET_MIN: Final = 1024 * 1024
_LOOK_MIN: Final = 4 * 1024 * 1024
_LOOK_MAX: Final = 16 * 1024 * 1024
"""Bytes as stored that GETs are made of, at least and at most. An import of PyTorch is 241 GETs where 4 MiB are looked at, 194 where 16
are, 173 where 64 are; but of more, what is needed first may come after what is not needed yet."""

_REST: Final = 0.1
_AGAIN: Final = 1.0
_STALLED: Final = 10.0


class Prefetch:
    """One image's. ``run`` is its task."""

    def __init__(self, owner: "Prefetches", lookup: Lookup) -> None:
        """``Prefetches.begin`` makes these."""
        self.lookup = lookup
        self._owner = owner
        self._trust = Trust()
        self._plan = Plan(())
        self._lacking = Lacking(lookup, owner.ram, owner.flights)
        self._scope = trio.CancelScope()
        self._news = trio.Event()
        self._complete = False
        self._ended = False
        # What is under way, as GETs count; of content, under way or being decoded, of the plan that was handed out, and that only RAM may
        # have.
        self._moving = self._coming = self._taken = self._held = 0
        # Where the program is, in the profile's milliseconds, and since when.
        self._at = 0
        self._since = self._sent = trio.current_time()
        self._again = 0.0

    # -- for who has begun it -------------------------------------------------------------------------------------------------------

    async def follow(self, accesses: Iterable[Access]) -> None:
        """Follow another profile from now on. Raises nothing that a profile could be the reason of."""
        try:
            steps = await trio.to_thread.run_sync(_steps_of, accesses, self.lookup)
        except ImageFSError as error:
            self._owner.log.error("prefetch_failed", manifest=self.lookup.name, error=error.message)  # noqa: TRY400 # a map is to blame
            steps = []
        self._plan = Plan(steps)
        self._taken = 0
        self._sent = trio.current_time()
        self._tell()

    def complete(self) -> None:
        """Say that no other profile will come."""
        self._complete = True
        self._tell()

    def stop(self) -> None:
        """End it. What is on its way still comes."""
        self._scope.cancel()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be asked for."""
        return self._ended

    @property
    def content(self) -> int:
        """Bytes of content that the profile names."""
        return self._plan.content

    @property
    def stored(self) -> int:
        """The same bytes as they are stored."""
        return self._plan.stored

    @property
    def share(self) -> float:
        """How much of what the profile names is on this host, of 1: by bytes of content."""
        content = self._plan.content
        return 1.0 if not content else max(0, self._taken - self._coming) / content

    async def reached(self, share: float) -> None:
        """Wait until that share is here, or no more of it is to be expected soon."""
        while not (self._ended and not self._coming) and trio.current_time() - self._sent < _STALLED:
            if self._plan.content and self.share >= share:
                return
            await self._rest()

    # -- the task -------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch until it is over. Raises nothing but ``Cancelled``."""
        log = self._owner.log
        try:
            with self._scope:
                while not (self._complete and self._plan.is_over(rare=True)):
                    if self._send():
                        await trio.lowlevel.checkpoint()
                    elif trio.current_time() - self._sent > PATIENCE:
                        break
                    else:
                        await self._rest()
        except Exception as error:  # noqa: BLE001 # a guess must not end the daemon
            log.error("prefetch_failed", manifest=self.lookup.name, error=str(error))  # noqa: TRY400 # a map may be to blame
        finally:
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _rest(self) -> None:
        with trio.move_on_after(_REST):
            await self._news.wait()

    def _send(self) -> bool:
        """Send the next GET, if it may be sent now; return whether it was."""
        owner, trust, now = self._owner, self._trust, trio.current_time()
        if trust.is_doubted or owner.link.is_down or now < self._again:
            return False
        shared = owner.link.is_shared(self.lookup.name)
        until = self._at + 1000 * (now - self._since) + SOON if shared else float("inf")
        rare = not shared and owner.link.is_idle and not self._moving
        look, limit = max(_LOOK_MIN, min(_LOOK_MAX, 2 * trust.window)), max(_GET_MIN, min(trust.window // 2, GET_MAX))
        steps = self._plan.peek(look, limit=limit, until=until, rare=rare)
        if not steps or self._coming > DECODING:
            return False
        if self._moving and self._moving + GET_COST + sum(step.stored for step in steps) > trust.window:
            return False
        if not self._has_room(sum(step.length for step in steps)):
            return False
        self._plan.pop()
        self._sent = now
        wanted, asked = self._mark(steps)
        if wanted:
            flights = owner.flights.depart(wanted, demand=False, gap=GAP, kind=Kind.PROFILE)
            content = sum(frame.length for _, frame in wanted)
            self._moving += sum(_cost(run) for run, _ in flights)
            self._coming += content
            self._held += content
            owner.nursery.start_soon(self._bring, flights, wanted, asked, content)
        return True

    def _has_room(self, content: int) -> bool:
        """Say whether so many bytes of content may be fetched beside those that nobody has read and only RAM has."""
        most = self._owner.ram.limit // HELD
        if self._held + content > most:
            self._held = self._owner.held(self)
        return not self._held or self._held + content <= most

    def _mark(self, steps: list[Step]) -> tuple[Frames, list[Step]]:
        """Return what is lacking of steps, which is on its way from now on, and of which of them that is."""
        wanted: Frames = []
        asked: list[Step] = []
        try:
            for step in steps:
                self._taken += step.length
                if found := self._lacking.mark(step):
                    asked.append(step)
                    wanted += found
                    for (part, piece), _ in found:
                        self._owner.ahead[part.slab.key, piece] = self, step.at  # type: ignore[union-attr] # what is marked has a slab
        except BaseException:
            self._owner.flights.unmark(wanted)
            raise
        return wanted, asked

    async def _bring(self, flights: list[Flight], wanted: Frames, steps: list[Step], content: int) -> None:
        owner, came = self._owner, list[bool]()
        left = sum(_cost(run) for run, _ in flights)

        def arrived(flight: Flight) -> None:
            nonlocal left
            (run, ticket), now = flight, trio.current_time()
            left -= _cost(run)
            self._moving -= _cost(run)
            # Of the link alone: what waits for its turn, or to be decoded, says nothing of how long a reader's GET would take.
            if ticket.took:
                self._trust.arrived(_cost(run), now - ticket.took, now, owner.link.latency())
            self._tell()

        try:
            async with trio.open_nursery() as nursery:
                await owner.store.bring(flights, nursery, came, arrived)
        finally:
            # Of a GET that could not be sent nobody tells that it has arrived.
            self._moving -= left
            self._coming -= content
            self._tell()
        lacking = {part.frames[piece] for (part, piece), _ in wanted if part.slab is not None and part.slab.state[piece] == MISSING}
        owner.counters.profile_bytes += sum(frame.length for (part, piece), frame in wanted if part.frames[piece] not in lacking)
        if all(came):
            self._trust.fetched(len(wanted))
        else:
            self._again = trio.current_time() + _AGAIN
        if lacking:
            failed = [step for step in steps if step.frame in lacking]
            self._taken -= sum(step.length for step in failed) - self._plan.put_back(failed)

    # -- what readers do ------------------------------------------------------------------------------------------------------------

    def used(self, at: int) -> None:
        """Note that a frame, which was fetched for this and is needed at ``at`` milliseconds, is read."""
        self._trust.known(1)
        self._reached(at)

    def knows(self, record: ObjectRecord, offset: int) -> bool:
        """Say whether the profile is trusted, and knows the frame that holds a byte of an object."""
        if self._trust.is_doubted or not self._plan.content:
            return False
        try:
            return self.lookup.objects.extents(record.row, offset, offset + 1)[0].frame in self._plan
        except (ImageFSError, IndexError):
            return False

    def missed(self, frames: Frames) -> bool:
        """Note that a reader waits for frames of this image, which nothing was bringing; return whether the profile knows all of them."""
        known = unknown = 0
        for (part, piece), _ in frames:
            number = part.frames[piece]
            at = self._plan.at(number)
            if at is None:
                unknown += 1
            else:
                known += 1
                self._plan.reach(number)
                self._reached(at)
        if known:
            self._trust.known(known)
        if unknown:
            before = self._trust.is_doubted
            self._trust.unknown(unknown)
            self._owner.counters.profiles_doubted += self._trust.is_doubted and not before
        self._tell()
        return not unknown

    def _reached(self, at: int) -> None:
        if at >= self._at:
            self._at, self._since = at, trio.current_time()


def _steps_of(accesses: Iterable[Access], lookup: Lookup) -> list[Step]:
    """Return the steps, when it can be told what SSD has of them: that is by objects. Blocks. ``IntegrityError`` for an unsound map."""
    steps = steps_of(accesses, lookup.objects)
    if steps:
        lookup.members.build()
    return steps


def _cost(run: Run[Tag]) -> int:
    """Return what a GET counts of what may be under way."""
    return run.end - run.start + GET_COST


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
