"""What the link to a store knows and decides: all that is synchronous, in one place.

It holds the gate (who is next), the pace (how many at once), the breaker (whether to ask at all), the figures (what is slow) and the
budget of hedges, and lets each learn from how GETs went. Nothing here waits, so no task can decide on half of a change.

Invariants: the gate's bounds are what pace and threads say after each GET; nobody waits at the gate when every thread hangs, nor does
prefetch while the breaker is open; a change of state is logged once. What does not live here: sending and waiting (``imagefs.cache.link``).
"""

import random
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from imagefs.cache.breaker import Breaker
from imagefs.cache.figures import Figures
from imagefs.cache.gate import Gate, Ticket
from imagefs.cache.hedge import HedgeBudget
from imagefs.cache.pace import LEAST, Pace
from imagefs.cache.threads import Runner
from imagefs.errors import DeadlineError, ImageFSError, StoreError

ATTEMPT_MIN: Final = 2.0
"""Seconds that an attempt has at least; a third of the deadline where that is less."""

PATIENCE: Final = 5.0
"""Seconds without an answer after which the breaker may open; at most a quarter of the deadline."""

HEDGE_MIN: Final = 0.01
"""Seconds before which no GET is hedged: a store that answers faster is a local one."""

_SLOWEST: Final = 1024 * 1024  # bytes a second, of all GETs in flight, that are hoped for as long as nothing is known
_QUIET: Final = 30.0  # seconds between two log lines about halving: a store that throttles does it again and again


class LinkLog(Protocol):
    """Where changes of the link's state are told: ``structlog``'s bound logger, as far as it is needed."""

    def info(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""

    def warning(self, event: str, /, *args: Any, **fields: Any) -> Any:
        """Log an event with fields."""


@dataclass(slots=True)
class LinkCounters:
    """Figures since the daemon started, touched by the trio thread alone.

    ``store_gets`` counts every attempt, hedges included, and ``store_bytes`` the bytes that were handed on. ``retried_gets`` are attempts
    after a failed one; ``timed_out_gets`` attempts that were given up because they took too long; ``failed_gets`` GETs that ended in an
    error. ``abandoned_threads`` is how many threads hang now, as of the last change; ``demand_wait_ms`` what demand spent at the gate.
    """

    store_gets: int = 0
    store_bytes: int = 0
    retried_gets: int = 0
    hedged_gets: int = 0
    hedge_wins: int = 0
    failed_gets: int = 0
    timed_out_gets: int = 0
    breaker_opens: int = 0
    abandoned_threads: int = 0
    demand_wait_ms: int = 0


class Control:
    """The state of one link. Belongs to the trio thread."""

    def __init__(
        self,
        counters: LinkCounters,
        log: LinkLog,
        runner: Runner,
        rng: random.Random,
        *,
        deadline: float,
        most: int,
        threads: int,
    ) -> None:
        """``deadline`` is in seconds; ``most`` bounds the GETs at once, ``threads`` these and those that hang."""
        self.counters = counters
        self._log = log
        self._runner = runner
        self._deadline = deadline
        self._threads = threads
        self._attempt_min = min(ATTEMPT_MIN, deadline / 3)
        self._pace = Pace(max(most, LEAST), slow=deadline / 6)
        self.gate = Gate(self._pace.limit, threads)
        self.breaker = Breaker(rng, patience=min(PATIENCE, deadline / 4))
        self.figures = Figures()
        self.budget = HedgeBudget()
        self.news = trio.lowlevel.ParkingLot()
        """Where one waits before a retry, or for a turn to probe: all are woken whenever the breaker has news."""
        self._stuck = False
        self._told_halved = float("-inf")

    # -- how long, and whether ------------------------------------------------------------------------------------------------------

    def seconds_for(self, size: int, timeouts: int, *, demand: bool) -> float:
        """Return how long an attempt may take: four times what is usual, and twice that after each that took too long.

        Demand is bounded such that there is time for another attempt. Prefetch is not: on a slow link, large GETs that are given up and
        sent again are what keeps it slow.
        """
        usual = self.figures.quantile(size, 0.95)
        if usual is None:
            seconds, most = ATTEMPT_MIN + size * max(1, self.gate.in_flight) / _SLOWEST, self._deadline / 2
        else:
            seconds, most = 4 * usual, self._deadline / 3
        return min(max(seconds, self._attempt_min), most if demand else self._deadline) * 2.0**timeouts

    def slow_after(self, size: int) -> float | None:
        """Return after how many seconds a GET is one of the slow ones; None if nothing is known.

        A quarter more than what 19 of 20 take: or half of the hedges would go to GETs that are about to arrive.
        """
        usual = self.figures.quantile(size, 0.95)
        return None if usual is None else max(HEDGE_MIN, 1.25 * usual)

    def may_hedge(self) -> bool:
        """Whether a GET may be sent a second time now; if so, that is paid for."""
        return not self.breaker.is_open and self.gate.is_free and self.budget.spend()

    def is_stuck(self) -> bool:
        """Whether every thread hangs, so that no GET can be sent."""
        self._resize()
        stuck = not self.gate.ceiling and not self.gate.in_flight
        if stuck != self._stuck:
            self._stuck = stuck
            tell = self._log.warning if stuck else self._log.info
            tell("store_threads_exhausted" if stuck else "store_threads_back", abandoned=self.counters.abandoned_threads)
        return stuck

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket from the gate, and let in whom that makes room for."""
        self._resize()
        self.gate.leave(ticket)
        if self.is_stuck():
            self.gate.refuse(demand=True)

    # -- how a GET went -------------------------------------------------------------------------------------------------------------

    def arrived(self, size: int, began: float, now: float, *, hedge_began: float | None) -> None:
        """Take in an attempt begun at ``began`` that brought its bytes, or whose hedge did, if that has won."""
        self.answered(now)
        self.counters.store_bytes += size
        self.figures.arrived(size, now)
        self.figures.took(size, now - began)
        if hedge_began is not None:
            self.counters.hedge_wins += 1
            self.figures.took(size, now - hedge_began)
        self._pace.delivered(size, began, now, full=self.gate.waiting > 0)

    def answered(self, now: float) -> None:
        """Take in that the store has answered, whatever it said."""
        silent = self.breaker.silent_for(now)
        if self.breaker.answered(now):
            self._log.info("store_back", silent_s=round(silent, 3))
            self._pace.restart()
            self.figures.forget()
            self.news.unpark_all()

    def unanswered(self, size: int, began: float, now: float, error: ImageFSError, probe: object | None) -> None:
        """Take in an attempt that brought an error of the retryable kind: the store cannot be reached, fails, or wants to be left alone."""
        retry_after = error.retry_after if isinstance(error, StoreError) else None
        if retry_after is not None:
            self._tell_halved("throttled", changed=self._pace.throttled(began, now), now=now)
        elif isinstance(error, DeadlineError):
            self.figures.took(size, now - began)
            self._tell_halved("stalled", changed=self._pace.stalled(began, now), now=now)
        if self.breaker.failed(began, now, error.message, retry_after=retry_after or 0.0, probe=probe):
            self.counters.breaker_opens += 1
            self._log.warning("store_unreachable", silent_s=round(self.breaker.silent_for(now), 3), error=error.message)
            self.gate.refuse(demand=False)
        if self.breaker.is_open:
            self.news.unpark_all()

    def gave_up(self, began: float, now: float) -> DeadlineError:
        """Take in an attempt that is given up because of its time; return the error to tell."""
        self.counters.timed_out_gets += 1
        return DeadlineError(f"a GET had no answer within {now - began:.1f} s")

    def is_telling(self, seconds: float) -> bool:
        """Whether so long without an answer says something about the store, where it was the caller who had no more time."""
        return seconds > 0.9 * self._attempt_min

    # -- for people -----------------------------------------------------------------------------------------------------------------

    def as_dict(self, now: float) -> dict[str, object]:
        """Return what goes on now. Keys that end in ``_s`` are seconds, in ``_ms`` milliseconds."""
        self.is_stuck()
        gate, breaker = self.gate, self.breaker
        return {
            "breaker": "open" if breaker.is_open else "closed",
            "open_for_s": None if breaker.opened_at is None else round(now - breaker.opened_at, 3),
            "silent_for_s": round(breaker.silent_for(now), 3),
            "last_error": breaker.last_error or None,
            "concurrency": gate.limit,
            "in_flight": gate.in_flight,
            "prefetch_in_flight": gate.prefetch,
            "waiting": gate.waiting,
            "demand_waiting": gate.demand_waiting,
            "abandoned_threads": self.counters.abandoned_threads,
            "free_threads": max(0, gate.ceiling - gate.in_flight),
            "bytes_per_second": round(self.figures.bytes_per_second(now)),
            "latency": self.figures.as_rows(),
        }

    # -- inside ---------------------------------------------------------------------------------------------------------------------

    def _resize(self) -> None:
        """Tell the gate what the pace and the threads allow."""
        self.counters.abandoned_threads = self._runner.abandoned
        self.gate.resize(self._pace.limit, max(0, self._threads - self.counters.abandoned_threads))

    def _tell_halved(self, reason: str, *, changed: bool, now: float) -> None:
        if changed and now - self._told_halved >= _QUIET:
            self._told_halved = now
            self._log.warning("store_concurrency_halved", concurrency=self._pace.limit, reason=reason)
