"""Sending a GET twice: how often that may be, and which of the two counts. Pure: nothing is awaited here.

Invariants: over any time, at most one hedge for every 20 demand GETs and ``BURST`` more; the first answer wins; an error counts only
when nobody is left who could still answer.
"""

from typing import Final

import trio

from imagefs.digest import Buffer
from imagefs.errors import ImageFSError

SHARE: Final = 0.05
"""Hedges for each demand GET."""

BURST: Final = 4.0
"""Hedges that may be saved up."""


class HedgeBudget:
    """A bucket of tokens that demand GETs fill and hedges empty."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        """Begin with one, so that a stalled first GET can be helped."""
        self._tokens = 1.0

    def earn(self) -> None:
        """Take in a demand GET."""
        self._tokens = min(BURST, self._tokens + SHARE)

    def spend(self) -> bool:
        """Take a hedge out, if there is one."""
        # A sum of many 0.05 falls short of 1 by its rounding.
        if self._tokens < 1 - SHARE / 2:
            return False
        self._tokens -= 1
        return True


class Race:
    """One or two GETs for the same bytes."""

    __slots__ = ("_error", "_running", "data", "hedge_began", "hedge_won", "over")

    def __init__(self) -> None:
        """Nobody runs yet."""
        self.over = trio.Event()
        """Set when the outcome is known."""
        self.data: Buffer | None = None
        self.hedge_began: float | None = None
        self.hedge_won = False
        self._error: ImageFSError | None = None
        self._running = 0

    def start(self, began: float, *, hedge: bool) -> None:
        """One more runs."""
        self._running += 1
        if hedge:
            self.hedge_began = began

    def win(self, data: Buffer, *, hedge: bool) -> None:
        """One has the bytes. Later ones are ignored."""
        if not self.over.is_set():
            self.data = data
            self.hedge_won = hedge
            self.over.set()

    def lose(self, error: ImageFSError) -> None:
        """One failed. The first error is the one that is told."""
        self._error = self._error or error
        self._running -= 1
        if not self._running:
            self.over.set()

    def result(self) -> Buffer:
        """Return the bytes, or raise the error."""
        if self.data is not None:
            return self.data
        assert self._error is not None
        raise self._error
