"""What a link does to everything that passes it: bandwidth, delay, silence.

Guarantees: all connections together get ``bandwidth``, over any time longer than a few pieces; connections that ask for more than their
share take turns, a piece each, in the order in which they asked; an idle link saves nothing up, so there is no burst after a pause. Delays
are never cut short, and are late only by what the scheduler adds.

``Link`` belongs to all threads; what is written is written under ``Link.changed``.
"""

import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

PIECE: Final = 512 << 10
"""Bytes that are read and sent at once on a link without a bandwidth."""

_PIECE_SECONDS: Final = 0.001
_SMALLEST: Final = 1 << 10
_TICK: Final = 0.02
"""Seconds after which a waiting thread looks whether its client is still there."""

_LATE: Final = 0.05
"""Seconds of lateness that a sender may make good in the middle of a body: what the scheduler takes is no property of the link."""


class Gone(Exception):  # noqa: N818 - an event, like trio.Cancelled
    """The client closed its connection while it was made to wait."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link is like.

    ``bandwidth`` and ``upload`` are bytes a second towards clients and from them, shared by all connections; None is no limit. ``delay``
    is the seconds that a round trip takes: half of them pass before a request reaches the server, half before its answer comes back.
    ``jitter`` adds from 0 to so many seconds to each. ``connect`` is added to the first request of each connection: what handshakes
    take. With ``refuse`` nobody listens. With ``black_hole`` connections are accepted, and nothing passes on these or on older ones.
    """

    bandwidth: float | None = None
    upload: float | None = None
    delay: float = 0.0
    jitter: float = 0.0
    connect: float = 0.0
    refuse: bool = False
    black_hole: bool = False

    def __post_init__(self) -> None:
        for rate in (self.bandwidth, self.upload):
            if rate is not None and rate <= 0:
                raise ValueError(f"a bandwidth is more than 0 bytes a second, or None: {rate}")
        if min(self.delay, self.jitter, self.connect) < 0:
            raise ValueError("seconds are not negative")


def closed(sock: socket.socket) -> bool:
    """Whether the other side closed its connection, or its sending half."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


@dataclass(slots=True)
class _Lane:
    """One direction: until when it is booked, in seconds of ``time.monotonic``."""

    free: float = 0.0

    def book(self, seconds: float, since: float) -> float:
        """Take the next ``seconds`` that are free from ``since`` on; return their end."""
        self.free = max(self.free, since) + seconds
        return self.free


@dataclass(slots=True)
class Link:
    """The link between all clients and the server."""

    shape: Shape = field(default_factory=Shape)
    changed: threading.Condition = field(default_factory=threading.Condition)
    _down: _Lane = field(default_factory=_Lane)
    _up: _Lane = field(default_factory=_Lane)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def change(self, **values: Any) -> None:
        """Change what ``Shape`` names; what is under way goes on in the new way, after the piece that it is at."""
        with self.changed:
            self.shape = replace(self.shape, **values)
            self._down, self._up = _Lane(), _Lane()
            self.changed.notify_all()

    def wait(self, blocked: Callable[[], bool], client: socket.socket, until: float = float("inf")) -> None:
        """Wait while ``blocked``, at the longest ``until``; raise ``Gone`` if the client left. Woken by ``changed``."""
        while True:
            with self.changed:
                rest = until - time.monotonic()
                if rest <= 0 or not blocked():
                    return
                self.changed.wait(min(rest, _TICK))
            if closed(client):
                raise Gone

    def sleep(self, seconds: float, client: socket.socket) -> None:
        """Wait for ``seconds``, to the precision of the clock; raise ``Gone`` if the client left."""
        until = time.monotonic() + seconds
        self.wait(lambda: True, client, until - _TICK)
        time.sleep(max(0.0, until - time.monotonic()))

    def travel(self, client: socket.socket, *, first: bool = False) -> None:
        """Let a message take its half of the round trip; ``first`` says that its connection is new."""
        shape = self.shape
        if shape.delay or shape.jitter or (first and shape.connect):
            with self.changed:
                jitter = self._random.uniform(0.0, shape.jitter / 2)
            self.sleep(shape.delay / 2 + jitter + (shape.connect if first else 0.0), client)

    def piece(self, *, up: bool = False) -> int:
        """Return how many bytes to pass at once: a millisecond of the link, so that turns are short."""
        rate = self.shape.upload if up else self.shape.bandwidth
        return PIECE if rate is None else min(max(int(rate * _PIECE_SECONDS), _SMALLEST), PIECE)

    def admit(self, count: int, client: socket.socket, since: float = 0.0, *, up: bool = False) -> float:
        """Return once ``count`` bytes may have passed; the result is ``since`` for the next piece of the same body."""
        due = max(since, time.monotonic() - _LATE) if since else time.monotonic()
        rate = self.shape.upload if up else self.shape.bandwidth
        if rate is not None:
            with self.changed:
                due = (self._up if up else self._down).book(count / rate, due)
            booked = self.shape
            self.wait(lambda: self.shape is booked, client, due - _TICK)
            if self.shape is booked:
                time.sleep(max(0.0, due - time.monotonic()))
        if self.shape.black_hole:
            self.wait(lambda: self.shape.black_hole, client)
        return due
