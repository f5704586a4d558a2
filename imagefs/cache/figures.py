"""What GETs took lately: the time by size, and the bytes a second. Pure: the time is an argument.

The time of a GET depends on its size, so sizes are put into classes, each four times the one before, and each class keeps its last
``KEPT`` times. A GET that was given up counts with the time that it had had: it would have taken at least that, and leaving it out would
make a link look the faster the more GETs are given up on it.

Invariants: a class with fewer than ``ENOUGH`` times is not asked; an estimate for a size never falls as the size grows within what is
taken from one class.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

KEPT: Final = 64
ENOUGH: Final = 8

_SMALLEST: Final = 64 * 1024
_CLASSES: Final = 6  # the last one: more than 16 MiB
_SMALL: Final = 2  # classes whose GETs take little longer than their first byte
_FEW: Final = 2
_WINDOW: Final = 10.0
_ARRIVALS: Final = 1024


class Figures:
    """Recent GETs of one link. Belongs to the trio thread."""

    __slots__ = ("_arrived", "_times")

    def __init__(self) -> None:
        """Know nothing."""
        self._times: list[deque[float]] = [deque(maxlen=KEPT) for _ in range(_CLASSES)]
        self._arrived: deque[tuple[float, int]] = deque(maxlen=_ARRIVALS)

    def took(self, size: int, seconds: float) -> None:
        """Note that a GET of ``size`` bytes took ``seconds``, or at least that."""
        self._times[_class_of(size)].append(seconds)

    def arrived(self, size: int, now: float) -> None:
        """Note that ``size`` bytes are there."""
        self._arrived.append((now, size))

    def forget(self) -> None:
        """Drop the times: what they were before an outage says little."""
        for times in self._times:
            times.clear()

    def quantile(self, size: int, share: float) -> float | None:
        """Return the seconds within which ``share`` of the GETs of that size came.

        Where too few of that size are known, the next smaller known ones are scaled up, else larger ones stand in as they are; None if
        nothing is known.
        """
        own = _class_of(size)
        for index in (*range(own, -1, -1), *range(own + 1, _CLASSES)):
            times = self._times[index]
            if len(times) >= ENOUGH:
                scale = size / _bound(index) if index < own else 1.0
                return _quantile(times, share) * scale
        return None

    def latency(self) -> float | None:
        """Return the seconds that the quick ones of the small GETs take; None while few are known."""
        times = [seconds for times in self._times[:_SMALL] for seconds in times]
        return _quantile(times, 0.25) if len(times) >= _FEW else None

    def bytes_per_second(self, now: float) -> float:
        """Return how much arrived, over the last seconds."""
        while self._arrived and now - self._arrived[0][0] > _WINDOW:
            self._arrived.popleft()
        if not self._arrived:
            return 0.0
        # Bytes before the first arrival that is remembered are not known of, unless it is the first of all.
        full = len(self._arrived) == _ARRIVALS
        span = now - self._arrived[0][0] if full else _WINDOW
        return sum(size for _, size in self._arrived) / max(span, 0.001)

    def as_rows(self) -> list[dict[str, object]]:
        """Return, a class of sizes, how many times are known and what they are, in milliseconds."""
        rows: list[dict[str, object]] = []
        for index, times in enumerate(self._times):
            if times:
                p50, p95 = (round(1000 * _quantile(times, share), 1) for share in (0.5, 0.95))
                bound = _bound(index) if index < _CLASSES - 1 else None
                rows.append({"up_to_bytes": bound, "gets": len(times), "p50_ms": p50, "p95_ms": p95})
        return rows


def _class_of(size: int) -> int:
    for index in range(_CLASSES - 1):
        if size <= _bound(index):
            return index
    return _CLASSES - 1


def _bound(index: int) -> int:
    return _SMALLEST << 2 * index


def _quantile(times: Iterable[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
