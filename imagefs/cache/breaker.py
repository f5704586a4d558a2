"""The circuit breaker of one store: when to stop asking, and when to ask again. Pure: the time is an argument.

It opens when nobody had an answer for ``patience`` seconds and ``FAILURES`` GETs or more failed meanwhile. The seconds, because eight GETs
that are refused in one moment are a store that restarts, and a reader that waits is better off than one that gets EIO; the count, because
one GET that hangs is a connection, not the store. A store that says when it wants to be asked again is given that time on top. Any
answer closes it, be it "no such key".

While it is open only *probes* go through: one demand GET at a time, one an interval, which grows from 1 to 15 s.

Invariants: never two probes at once; a probe that is withdrawn (its reader gave up) leaves the turn to the next; only demand probes;
after an answer everything goes through.
"""

import random
from typing import Final

from imagefs.errors import StoreError

FAILURES: Final = 3
"""GETs that must fail one after the other, over all readers."""

FORGET: Final = 30.0
"""Seconds after which a failure has nothing to do with the next one."""

INTERVAL_MIN: Final = 1.0
INTERVAL_MAX: Final = 15.0
"""Seconds between probes, at least and at most, but for a jitter of a fifth less."""


class Breaker:
    """Says whether a GET may be sent, and learns from how it went. Belongs to the trio thread."""

    __slots__ = (
        "_answered",
        "_due",
        "_error",
        "_interval",
        "_last",
        "_patience",
        "_patient_until",
        "_probe",
        "_rng",
        "_since",
        "_streak",
        "opened_at",
    )

    def __init__(self, rng: random.Random, *, patience: float) -> None:
        """``patience`` is in seconds without an answer."""
        self._rng = rng
        self._patience = patience
        self._answered = self._last = self._since = self._patient_until = float("-inf")
        self._streak = 0
        self._interval = INTERVAL_MIN
        self._due = 0.0
        self._probe: object | None = None
        self._error = ""
        self.opened_at: float | None = None
        """When it opened; None while it is closed."""

    @property
    def is_open(self) -> bool:
        """Whether only probes go through."""
        return self.opened_at is not None

    def has_opened_by(self, then: float) -> bool:
        """Whether it is open, and was so at a time that has passed."""
        return self.opened_at is not None and then >= self.opened_at

    @property
    def last_error(self) -> str:
        """Why a GET failed last; empty if none did."""
        return self._error

    def silent_for(self, now: float) -> float:
        """Return for how many seconds the store has not answered; 0 while it is closed."""
        return now - self._since if self.is_open else 0.0

    def allows(self, now: float, *, demand: bool) -> bool:
        """Whether a GET may be sent now."""
        return not self.is_open or (demand and self._probe is None and now >= self._due)

    def begin(self) -> object | None:
        """Send a GET that is allowed. Returns the token of a probe, or None for any other."""
        if not self.is_open:
            return None
        assert self._probe is None
        self._probe = object()
        return self._probe

    def withdraw(self, probe: object) -> None:
        """Give up a probe that has no outcome; one that has, is left alone."""
        if self._probe is probe:
            self._probe = None

    def wait(self, now: float) -> float:
        """Return the seconds until the next probe may be sent, for those who wait for a turn; infinite while one is on its way."""
        return float("inf") if self._probe is not None else max(0.0, self._due - now)

    def answered(self, now: float) -> bool:
        """Take in an answer; return whether it closed the breaker."""
        was_open = self.is_open
        self._answered = now
        self._streak = 0
        self._probe = None
        self.opened_at = None
        return was_open

    def failed(self, began: float, now: float, error: str, *, retry_after: float = 0.0, probe: object | None = None) -> bool:
        """Take in a GET, sent at ``began``, that had no answer; return whether that opened the breaker.

        ``retry_after``: seconds for which the store wants not to be asked.
        """
        self._error = error
        if self.is_open:
            # GETs that were sent before it opened say nothing new.
            if probe is not None and probe is self._probe:
                self._probe = None
                self._interval = min(INTERVAL_MAX, 2 * self._interval)
                self._schedule(now, retry_after)
            return False
        if not self._streak or now - self._last > FORGET:
            self._streak = 0
            self._since = max(began, self._answered)
            self._patient_until = self._since + self._patience + retry_after
        self._streak += 1
        self._last = now
        if self._streak < FAILURES or now < self._patient_until:
            return False
        self.opened_at = now
        self._interval = INTERVAL_MIN
        self._schedule(now, retry_after)
        return True

    def refusal(self, now: float) -> StoreError:
        """Return what a GET that is not allowed gets to hear."""
        return StoreError(
            f"the store has not answered for {self.silent_for(now):.0f} s, last: {self._error}",
            hint="it is asked again every few seconds; what is cached can be read meanwhile",
        )

    def _schedule(self, now: float, retry_after: float) -> None:
        self._due = now + max(retry_after, self._interval * self._rng.uniform(0.8, 1.0))
