"""What passed: each request, and sums.

Guarantees: bytes are counted before they are handed to the kernel, and what the kernel did not take is taken off again; a request counts as
ended before its last byte is handed over. So whoever has a whole answer in hand finds it fully counted, and a client that waits for one
answer before it asks again is never seen to have two requests in flight. Bytes that the kernel took may still be lost when a client
closes its connection early: they moved, and are counted. That a client closed a connection is seen a little later.

``Ledger`` belongs to all threads; everything is under one lock.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Exchange:
    """A request and what was answered.

    ``key`` is the decoded path without its first slash: where the bucket is part of the path, it is part of this.
    ``start`` and ``end`` (exclusive) are the range that the answer carries, by its own words (or those of the server, where a fault made
    them wrong); of a request that got no such answer, the range that it asked for. ``received`` and ``sent`` are bytes of the request's
    and the answer's body. ``faults`` numbers those that hit. Times are seconds of ``time.monotonic``: the request's head was read,
    the answer's was sent, the end.
    """

    connection: int
    method: str
    key: str
    query: str
    start: int | None
    end: int | None
    begun: float
    status: int | None = None
    received: int = 0
    sent: int = 0
    corrupted: bool = False
    faults: list[int] = field(default_factory=list)
    answered: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Sums since the start, or since ``FaultProxy.forget``.

    ``bytes`` are those of all bodies that were sent to clients, ``bytes_by_key`` the same by key. ``connections`` were accepted, of which
    ``open`` are open; ``in_flight`` counts GETs. ``corrupted`` answers had at least one wrong byte among those sent. ``hits`` tells how
    many requests each fault hit, by its number. ``upstream_errors`` counts requests that failed at the server, not by a fault.
    """

    requests: int
    bytes: int
    bytes_by_key: dict[str, int]
    connections: int
    open: int
    in_flight: int
    most_in_flight: int
    corrupted: int
    upstream_errors: int
    hits: dict[int, int]


def moved_twice(exchanges: Iterable[Exchange]) -> list[tuple[str, int, int]]:
    """Return (key, start, end) of every range, end exclusive, of which bytes were sent by more than one GET."""
    again: list[tuple[str, int, int]] = []
    sent: dict[str, list[tuple[int, int]]] = {}
    for exchange in exchanges:
        if exchange.method == "GET" and exchange.status in {200, 206} and exchange.sent and exchange.start is not None:
            sent.setdefault(exchange.key, []).append((exchange.start, exchange.start + exchange.sent))
    for key, ranges in sent.items():
        reached = -1
        for start, end in sorted(ranges):
            if start < reached:
                again.append((key, start, min(end, reached)))
            reached = max(reached, end)
    return again


@dataclass(slots=True)
class Ledger:
    """The counters."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _exchanges: list[Exchange] = field(default_factory=list)
    _connections: int = 0
    _open: int = 0
    _numbered: int = 0
    _in_flight: int = 0
    _most: int = 0
    _upstream_errors: int = 0

    def opened(self) -> int:
        """Count a connection; return its number."""
        with self._lock:
            self._connections += 1
            self._open += 1
            self._numbered += 1
            return self._numbered

    def closed(self) -> None:
        """Count the end of a connection."""
        with self._lock:
            self._open -= 1

    def begin(self, exchange: Exchange) -> Exchange:
        """Enter a request."""
        with self._lock:
            self._exchanges.append(exchange)
            if exchange.method == "GET":
                self._in_flight += 1
                self._most = max(self._most, self._in_flight)
        return exchange

    def answer(self, exchange: Exchange, status: int, span: tuple[int, int | None] | None = None) -> None:
        """Note an answer, and the range that it carries, if it does."""
        with self._lock:
            exchange.status = status
            exchange.answered = time.monotonic()
            if span is not None:
                exchange.start, exchange.end = span

    def sent(self, exchange: Exchange, count: int, *, corrupted: bool = False) -> None:
        """Count ``count`` bytes of an answer's body; less than 0 takes back what was counted."""
        with self._lock:
            exchange.sent += count
            exchange.corrupted = exchange.corrupted or corrupted

    def received(self, exchange: Exchange, count: int) -> None:
        """Count ``count`` bytes of a request's body."""
        with self._lock:
            exchange.received += count

    def hit(self, exchange: Exchange, faults: Iterable[int]) -> None:
        """Note faults that hit a request."""
        with self._lock:
            exchange.faults.extend(faults)

    def end(self, exchange: Exchange) -> None:
        """Note the end of a request; a second time changes nothing."""
        with self._lock:
            if exchange.ended is None:
                exchange.ended = time.monotonic()
                self._in_flight -= exchange.method == "GET"

    def upstream_error(self) -> None:
        """Count a request that failed at the server."""
        with self._lock:
            self._upstream_errors += 1

    def forget(self) -> None:
        """Begin to count anew; requests under way are counted from here on only in what is in flight."""
        with self._lock:
            self._exchanges.clear()
            self._connections = self._open
            self._most = self._in_flight
            self._upstream_errors = 0

    def exchanges(self) -> list[dict[str, Any]]:
        """Return every request, in the order of arrival, as JSON takes it."""
        with self._lock:
            return [asdict(exchange) for exchange in self._exchanges]

    def stats(self, hits: dict[int, int]) -> Stats:
        """Return the sums, with the faults' ``hits``."""
        with self._lock:
            by_key: Counter[str] = Counter()
            for exchange in self._exchanges:
                by_key[exchange.key] += exchange.sent
            return Stats(
                requests=len(self._exchanges),
                bytes=by_key.total(),
                bytes_by_key={key: count for key, count in by_key.items() if count},
                connections=self._connections,
                open=self._open,
                in_flight=self._in_flight,
                most_in_flight=self._most,
                corrupted=sum(exchange.corrupted for exchange in self._exchanges),
                upstream_errors=self._upstream_errors,
                hits=hits,
            )
