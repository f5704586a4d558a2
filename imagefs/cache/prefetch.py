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
which order (``prefetch_plan``), whether the profile is any good (``prefetch_trust``), who tells a prefetch of readers (``prefetches``), and
where profiles are from (``imagefs.daemon``).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import trio

from imagefs.cache.flights import Flight
from imagefs.cache.gets import Kind
from imagefs.cache.lacking import Lacking
from imagefs.cache.layout import Lookup, ObjectRecord
from imagefs.cache.pieces import Frames, Tag
from imagefs.cache.planner import GET_MAX, Run
from imagefs.cache.prefetch_plan import GAP, Plan, Step, steps_of
from imagefs.cache.prefetch_trust import GET_COST, Trust
from imagefs.cache.slab import MISSING
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import ObjectRow
from imagefs.format.profile import Access

if TYPE_CHECKING:
    from imagefs.cache.prefetches import Prefetches

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

    async def follow(self, accesses: Iterable[Access], *, chosen: bool = False) -> None:
        """Follow another profile from now on. Raises nothing that a profile could be the reason of.

        ``chosen``: it is of the program that is running, so what the one before was worth says nothing of it.
        """
        try:
            steps = await trio.to_thread.run_sync(_steps_of, accesses, self.lookup)
        except ImageFSError as error:
            self._owner.log.error("prefetch_failed", manifest=self.lookup.name, error=error.message)  # noqa: TRY400 # a map is to blame
            steps = []
        self._plan = Plan(steps)
        self._taken = 0
        if chosen:
            self._trust.renew()
        self._sent = trio.current_time()
        self._tell()

    def doubt(self) -> None:
        """Say that none of the starts which the profile is made of was of the program that is running, as far as is known."""
        before = self._trust.is_doubted
        self._trust.doubt()
        self._note_doubt(before=before)

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
        return 1.0 if not content else min(1.0, max(0, self._taken - self._coming) / content)

    async def reached(self, share: float) -> None:
        """Wait until that share is here, or no more of it is to be expected soon."""
        since = trio.current_time()
        while not self._has_stopped(since) and not (self._plan.content and self.share >= share):
            await self._rest()

    async def done(self) -> None:
        """Wait until no more is to be expected soon, of what few starts touch either."""
        since = trio.current_time()
        while not self._has_stopped(since):
            await self._rest()

    def _has_stopped(self, since: float) -> bool:
        """Say whether nothing more comes: nothing was sent for a while, of which who waits since then was there for all."""
        return (self._ended and not self._coming) or trio.current_time() - max(self._sent, since) >= _STALLED

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
        return self._needed(record.row, offset) is not None

    def _needed(self, row: ObjectRow, offset: int) -> int | None:
        """Return the frame that holds a byte of an object, if the profile knows it."""
        try:
            number = self.lookup.objects.extents(row, offset, offset + 1)[0].frame
        except (ImageFSError, IndexError):
            return None
        return number if number in self._plan else None

    def opened(self, digest: bytes) -> None:
        """Note that an object is opened that the kernel has: who reads it will not be seen here, but is where this is needed."""
        row = self.lookup.objects.find(digest)
        if row is None or not self._plan.content:
            return
        number = self._needed(row, 0)
        before = self._trust.is_doubted
        if number is None:
            self._trust.strange(1)
            self._note_doubt(before=before)
        else:
            self._trust.known(1)
            self._plan.reach(number)
            self._reached(self._plan.at(number) or 0)
        if before or number is not None:
            self._tell()

    def _note_doubt(self, *, before: bool) -> None:
        self._owner.counters.profiles_doubted += self._trust.is_doubted and not before

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
            self._note_doubt(before=before)
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
