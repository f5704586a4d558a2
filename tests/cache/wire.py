"""A store at the end of a simulated link, on trio's clock instead of in threads: GETs take the seconds of a script, or share a link."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from imagefs.digest import Buffer
from imagefs.store.base import ByteRange

FOREVER = float("inf")

Outcome = bytes | Exception | None
"""The bytes of a GET, an error, or None for as many bytes as were asked for."""


@dataclass(frozen=True, slots=True)
class Call:
    """One GET as it arrives: the ``number``th (from 0), at a time, with so many in flight, itself included."""

    number: int
    key: str
    size: int
    at: float
    in_flight: int


Script = Callable[[Call], tuple[float, Outcome]]


class SharedLink:
    """A link of ``total`` bytes a second, shared by the transfers under way, each of at most ``each``, ``rtt`` seconds to the first byte.

    Sizes and seconds vary by a ``noise`` share up and down. A transfer that is given up goes on and takes its part of the link.
    """

    def __init__(self, total: float, each: float, *, rtt: float = 0.02, noise: float = 0.3, seed: int = 5) -> None:
        self.total = total
        self.each = each
        self._rtt = rtt
        self._noise = noise
        self._rng = random.Random(seed)
        # All transfers go equally fast: one is done when each has moved so many bytes since the link began.
        self._moved = 0.0
        self._at = trio.current_time()
        self._due: list[tuple[float, int, trio.Event]] = []
        self._count = 0
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Complete transfers when they are due, for ever."""
        while True:
            self._scope = trio.CancelScope()
            self._plan()
            with self._scope:
                await trio.sleep_forever()
            self._advance()
            while self._due and self._due[0][0] <= self._moved + 1:
                heapq.heappop(self._due)[2].set()

    def change(self, total: float, each: float) -> None:
        """Become another link."""
        self._advance()
        self.total = total
        self.each = each
        self._plan()

    def begin(self, size: int) -> tuple[float, Callable[[], trio.Event]]:
        """Return the seconds until the first byte, and how to start the transfer then: it returns what is set at its end."""
        return self._rtt * self._vary(), lambda: self._start(size * self._vary())

    def _start(self, size: float) -> trio.Event:
        self._advance()
        done = trio.Event()
        self._count += 1
        heapq.heappush(self._due, (self._moved + size, self._count, done))
        self._plan()
        return done

    def _vary(self) -> float:
        return self._rng.uniform(1 - self._noise, 1 + self._noise)

    def _rate(self) -> float:
        return min(self.each, self.total / max(1, len(self._due)))

    def _advance(self) -> None:
        now = trio.current_time()
        self._moved += (now - self._at) * self._rate()
        self._at = now

    def _plan(self) -> None:
        self._scope.deadline = self._at + max(0.0, self._due[0][0] - self._moved) / self._rate() if self._due else FOREVER


@dataclass(slots=True)
class Wire:
    """Both the store and the runner of its GETs. ``hang`` is how long a thread that was given up lives on, at most.

    With a ``link``, the script's seconds come on top of the transfer.
    """

    script: Script
    hang: float = FOREVER
    link: SharedLink | None = None
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    moved: int = 0
    _next: tuple[float, Outcome] = (0.0, None)
    _size: int = 0
    _hanging: list[float] = field(default_factory=list)
    _transfers: list[trio.Event] = field(default_factory=list)

    @property
    def abandoned(self) -> int:
        now = trio.current_time()
        self._hanging = [until for until in self._hanging if until > now]
        self._transfers = [done for done in self._transfers if not done.is_set()]
        return len(self._hanging) + len(self._transfers)

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        assert byte_range is not None
        size = byte_range.end - byte_range.start
        call = Call(len(self.calls), key, size, trio.current_time(), self.in_flight)
        self.calls.append(call)
        seconds, outcome = self.script(call)
        self._next = (seconds, bytes(size) if outcome is None else outcome)
        self._size = size
        return b""

    async def __call__(self, call: Callable[[], Buffer]) -> Buffer:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        call()
        (seconds, outcome), began = self._next, trio.current_time()
        size = self._size
        try:
            await trio.sleep(seconds)
            if self.link is not None:
                await self._transfer(self.link, size)
        except trio.Cancelled:
            self._hanging.append(min(began + seconds, trio.current_time() + self.hang))
            raise
        finally:
            self.in_flight -= 1
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        self.moved += len(outcome)
        return outcome

    async def _transfer(self, link: SharedLink, size: int) -> None:
        latency, start = link.begin(size)
        await trio.sleep(latency)
        done = start()
        try:
            await done.wait()
        except trio.Cancelled:
            self._transfers.append(done)
            raise
