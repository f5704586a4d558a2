"""A store at the end of a simulated link: GETs take the seconds that a script says, on trio's clock instead of in threads."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

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


@dataclass(slots=True)
class Wire:
    """Both the store and the runner of its GETs. ``hang`` is how long a thread that was given up lives on, at most."""

    script: Script
    hang: float = FOREVER
    calls: list[Call] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    moved: int = 0
    _next: tuple[float, Outcome] = (0.0, None)
    _hanging: list[float] = field(default_factory=list)

    @property
    def abandoned(self) -> int:
        now = trio.current_time()
        self._hanging = [until for until in self._hanging if until > now]
        return len(self._hanging)

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        assert byte_range is not None
        size = byte_range.end - byte_range.start
        call = Call(len(self.calls), key, size, trio.current_time(), self.in_flight)
        self.calls.append(call)
        seconds, outcome = self.script(call)
        self._next = (seconds, bytes(size) if outcome is None else outcome)
        return b""

    async def __call__(self, call: Callable[[], bytes]) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        call()
        (seconds, outcome), began = self._next, trio.current_time()
        try:
            await trio.sleep(seconds)
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
