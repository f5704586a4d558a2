"""Threads for calls that may hang: one that is given up goes on by itself, and is counted until it ends.

Python cannot stop a thread. A GET that hangs ends by its socket's timeout, or never where the store is a hung file system; so whoever
starts calls here must look at ``abandoned`` and stop at some number.

Invariants: a call that was cancelled before its thread started is never made; ``abandoned`` is exact whenever it is read.
"""

import math
from collections.abc import Callable
from typing import Protocol

import trio

from imagefs.digest import Buffer


class Runner(Protocol):
    """Runs blocking calls for the trio thread. Cancelling returns at once, and leaves the call to itself."""

    @property
    def abandoned(self) -> int:
        """Calls that were given up and have not ended."""

    async def __call__(self, call: Callable[[], Buffer]) -> Buffer:
        """Return what the call returns, or raise what it raises."""


class GetThreads:
    """The runner of the daemon. Belongs to the trio thread; the threads touch nothing but their own call."""

    def __init__(self) -> None:
        """Start without threads; trio keeps and reuses them."""
        # Not a bound, the caller has one: a call must never wait here, or it could not be known whether its thread was started.
        self._limiter = trio.CapacityLimiter(math.inf)
        self._abandoned: list[_Call] = []

    @property
    def abandoned(self) -> int:
        """Calls that were given up and have not ended."""
        if self._abandoned:
            self._abandoned = [call for call in self._abandoned if not call.ended]
        return len(self._abandoned)

    async def __call__(self, call: Callable[[], Buffer]) -> Buffer:
        """Return what the call returns, or raise what it raises."""
        await trio.lowlevel.checkpoint_if_cancelled()
        mine = _Call(call)
        try:
            return await trio.to_thread.run_sync(mine.run, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            self._abandoned.append(mine)
            raise


class _Call:
    """One call, and whether its thread is done with it."""

    __slots__ = ("_call", "ended")

    def __init__(self, call: Callable[[], Buffer]) -> None:
        self._call = call
        self.ended = False

    def run(self) -> Buffer:
        try:
            return self._call()
        finally:
            self.ended = True
