"""The link to a store: the one way in which bytes of packs come in.

Each GET waits at the gate, is sent in a thread, is sent again where that may help, and ends within its time.

Invariants:

- a GET returns exactly its bytes or raises an ``ImageFSError``, by ``until``, also when the store never answers;
- while the breaker is open, a GET that comes fails at once, unless it is the probe; prefetch that waits fails at once. Demand that was
  there before it opened waits on, up to its time, and gives the probes: a short outage fails none of them;
- what is not retryable, and a short answer, is final. A retry is sent no earlier than the store asked for, and never after ``until``;
- an attempt is given up long before the deadline: its thread is left to itself, counted, and there are never more than ``threads`` of
  them. When all of them hang, GETs fail at once and say so;
- a caller that is cancelled leaves nothing behind but, at worst, such a thread.

All state belongs to the trio thread; threads run ``store.get`` and nothing else. What does not live here: what is decided
(``imagefs.cache.control``), which ranges to get (``planner``), and what is in them (``fetcher``).
"""

import functools
import random
from collections.abc import Callable, Hashable
from typing import Final, Protocol

import trio

from imagefs.cache.control import Control, LinkCounters, LinkLog
from imagefs.cache.gate import WAITING, Ticket
from imagefs.cache.hedge import Race
from imagefs.cache.threads import GetThreads, Runner
from imagefs.digest import Buffer
from imagefs.errors import DeadlineError, ImageFSError, IntegrityError, StoreError
from imagefs.store.base import ByteRange, FirstBytes, Moment

__all__ = ["Link", "LinkCounters", "LinkLog", "PackSource", "Runner", "Ticket"]

BACKOFF_MIN: Final = 0.1
BACKOFF_MAX: Final = 5.0
"""Seconds before a retry: a random part of the first, which doubles with each retry up to the second."""


class PackSource(Protocol):
    """Where packs are: a store, as far as it is needed. See ``ObjectStore.get``."""

    def get(self, key: str, byte_range: ByteRange | None = None) -> Buffer:
        """Return exactly the bytes of the range, or raise. Blocks."""


class _Get:
    """One GET of a caller: what it wants, and how its attempts went."""

    __slots__ = ("began", "byte_range", "error", "key", "retries", "size", "ticket", "timeouts", "until")

    def __init__(self, key: str, byte_range: ByteRange, ticket: Ticket, began: float, until: float) -> None:
        self.key = key
        self.byte_range = byte_range
        self.ticket = ticket
        self.began = began
        self.until = until
        self.size = byte_range.end - byte_range.start
        self.retries = 0
        self.timeouts = 0
        self.error: ImageFSError | None = None


class Link:
    """GETs ranges of packs from one store. Belongs to the trio thread."""

    def __init__(
        self,
        store: PackSource,
        counters: LinkCounters,
        log: LinkLog,
        *,
        deadline: float,
        most: int = 64,
        threads: int | None = None,
        run: Runner | None = None,
        clock: Callable[[], float] = trio.current_time,
        rng: random.Random | None = None,
    ) -> None:
        """``deadline`` is in seconds; ``most`` bounds the GETs at once, ``threads`` (twice that) these and those that hang.

        ``run`` runs the blocking GETs; ``clock`` runs as fast as trio's; ``rng`` gives the jitter.
        """
        self._store = store
        self._noting = store if isinstance(store, FirstBytes) else None
        self._deadline = deadline
        self._run = run or GetThreads()
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 # jitter
        self._counters = counters
        self._control = Control(counters, log, self._run, self._rng, deadline=deadline, most=most, threads=threads or 2 * most)

    # -- for callers ----------------------------------------------------------------------------------------------------------------

    async def get(self, key: str, byte_range: ByteRange, ticket: Ticket, *, until: float | None = None) -> Buffer:
        """Return exactly the bytes of a range of a pack by ``until``, or raise an ``ImageFSError``.

        ``until`` is on the clock, and by default the deadline from now. A ticket is for one GET at a time.
        """
        now = self._clock()
        wanted = _Get(key, byte_range, ticket, now, now + self._deadline if until is None else until)
        if now < wanted.until:
            try:
                with trio.move_on_after(wanted.until - now):
                    return await self._persist(wanted)
            except ImageFSError:
                self._counters.failed_gets += 1
                raise
        self._counters.failed_gets += 1
        last = f", last: {wanted.error.message}" if wanted.error else ""
        raise DeadlineError(f"the store did not answer within {max(0.0, wanted.until - now):g} s{last}") from wanted.error

    def latency(self) -> float | None:
        """Return the seconds that small GETs take; None while that is not known."""
        return self._control.figures.latency()

    def is_shared(self, owner: Hashable) -> bool:
        """Say whether somebody else than ``owner`` (of tickets) waits for the link."""
        return self._control.gate.is_wanted_by_others(owner)

    @property
    def is_idle(self) -> bool:
        """Whether no reader waits for anything of it."""
        gate = self._control.gate
        return not gate.demand and not gate.demand_waiting

    @property
    def is_quiet(self) -> bool:
        """Whether nobody waits for it, reader or not."""
        return self.is_idle and not self._control.gate.waiting

    @property
    def is_down(self) -> bool:
        """Whether the store counts as unreachable."""
        return self._control.breaker.is_open

    def state(self) -> dict[str, object]:
        """Return what the link does now: for ``status`` and ``doctor``. Keys that end in ``_s`` are seconds, in ``_ms`` milliseconds."""
        return self._control.as_dict(self._clock())

    # -- one GET: attempts until one is final ---------------------------------------------------------------------------------------

    async def _persist(self, wanted: _Get) -> Buffer:
        control, ticket = self._control, wanted.ticket
        while True:
            await self._clearance(wanted)
            pause = 0.0
            try:
                if await self._enter(ticket) and control.breaker.allows(self._clock(), demand=ticket.demand):
                    return await self._attempt(wanted)
            except ImageFSError as error:
                pause = self._pause_after(wanted, error)
            finally:
                control.leave(ticket)
            if pause:
                await self._pause(wanted, pause)

    async def _clearance(self, wanted: _Get) -> None:
        """Wait until the GET may be sent as far as the breaker goes, or raise its refusal."""
        breaker = self._control.breaker
        while not breaker.allows(now := self._clock(), demand=wanted.ticket.demand):
            if not wanted.ticket.demand or breaker.has_opened_by(wanted.began):
                raise breaker.refusal(now)
            with trio.move_on_after(breaker.wait(now)):
                await self._control.news.park()
        if self._control.is_stuck():
            raise StoreError(f"{self._counters.abandoned_threads} GETs hang in the store, and no more may be sent")

    async def _enter(self, ticket: Ticket) -> bool:
        """Wait at the gate; return whether the ticket is inside."""
        self._control.gate.enter(ticket)
        if ticket.state != WAITING:
            return await ticket.called()
        began = self._clock()
        try:
            return await ticket.called()
        finally:
            if ticket.demand:
                self._counters.demand_wait_ms += round(1000 * (self._clock() - began))

    def _pause_after(self, wanted: _Get, error: ImageFSError) -> float:
        """Return the seconds until the next attempt; raise ``error`` if there is none."""
        wanted.error = error
        if not error.retryable:
            raise error
        if self._control.breaker.is_open:
            return 0.0  # the breaker says when
        asked = error.retry_after if isinstance(error, StoreError) else None
        pause = (asked or 0.0) + self._rng.uniform(0, min(BACKOFF_MAX, BACKOFF_MIN * 2.0**wanted.retries))
        if self._clock() + pause >= wanted.until:
            raise error
        wanted.retries += 1
        return pause

    async def _pause(self, wanted: _Get, seconds: float) -> None:
        """Wait before a retry. Prefetch does not wait on when the breaker opens."""
        resume = self._clock() + seconds
        while (left := resume - self._clock()) > 0 and (wanted.ticket.demand or not self._control.breaker.is_open):
            with trio.move_on_after(left):
                await self._control.news.park()

    # -- one attempt ----------------------------------------------------------------------------------------------------------------

    async def _attempt(self, wanted: _Get) -> Buffer:
        """Send a GET, and let the control learn from how it went."""
        control, began, race = self._control, self._clock(), Race()
        probe = control.breaker.begin()
        self._counters.retried_gets += wanted.error is not None
        try:
            with trio.move_on_after(control.seconds_for(wanted.size, wanted.timeouts, demand=wanted.ticket.demand)):
                await self._contest(wanted, race, hedged=probe is None)
            if not race.over.is_set():
                wanted.timeouts += 1
                raise control.gave_up(began, self._clock())
            data = _checked(wanted, race.result())
        except trio.Cancelled:
            # That a caller cancels says nothing of the store; that its time is over may.
            if (now := self._clock()) >= wanted.until:
                wanted.error = control.gave_up(began, now)
                if control.is_telling(now - began):
                    control.unanswered(wanted.size, began, now, wanted.error, probe)
            raise
        except ImageFSError as error:
            if error.retryable:
                control.unanswered(wanted.size, began, self._clock(), error, probe)
            else:
                control.answered(self._clock())
            raise
        finally:
            if probe is not None:
                control.breaker.withdraw(probe)
                control.news.unpark_all()
        now = self._clock()
        wanted.ticket.took = now - began
        control.arrived(wanted.size, began, now, hedge_began=race.hedge_began if race.hedge_won else None)
        return data

    async def _contest(self, wanted: _Get, race: Race, *, hedged: bool) -> None:
        """Run the GET, and perhaps its hedge, until one has answered or none can."""
        if wanted.ticket.demand:
            self._control.budget.earn()
        slow = self._control.slow_after(wanted.size) if hedged else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._contend, wanted, race, False)
            if slow is not None:
                nursery.start_soon(self._hedge, wanted, race, slow)
            await race.over.wait()
            nursery.cancel_scope.cancel()

    async def _contend(self, wanted: _Get, race: Race, hedge: bool) -> None:
        began = self._clock()
        self._counters.store_gets += 1
        call = functools.partial(self._store.get, wanted.key, wanted.byte_range)
        noted, first = wanted.ticket.get, Moment()
        if noted is not None:
            noted.is_sent()
            if self._noting is not None:
                call = functools.partial(self._noting.get_noting, wanted.key, wanted.byte_range, first)
        race.start(began, hedge=hedge)
        try:
            data = await self._run(call)
        except ImageFSError as error:
            race.lose(error)
        except Exception as error:  # noqa: BLE001 # a bug in a store must not end the daemon
            race.lose(StoreError(f"unexpected {type(error).__name__} from the store: {error}"))
        else:
            race.win(data, hedge=hedge)
            if noted is not None:
                noted.has_begun(first.at)

    async def _hedge(self, wanted: _Get, race: Race, slow: float) -> None:
        """Send the GET again when it is slow, a reader waits for it, and nobody else needs the place."""
        await trio.sleep(slow)
        await wanted.ticket.wanted.wait()
        if not self._control.may_hedge():
            return
        ticket = Ticket(demand=True)
        self._control.gate.enter(ticket)
        try:
            self._counters.hedged_gets += 1
            await self._contend(wanted, race, hedge=True)
        finally:
            self._control.leave(ticket)


def _checked(wanted: _Get, data: Buffer) -> Buffer:
    if len(data) != wanted.size:
        raise IntegrityError(f"the store gave {len(data)} bytes of {wanted.key}, not {wanted.size}")
    return data
