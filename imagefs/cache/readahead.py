"""How far to read ahead of a reader: pure, no I/O, one small state for each reader of an object.

A reader is *sequential* while each request lies near where the last ones ended, a little before or after: the kernel sends several requests
at once, and they may arrive in another order. What it has read so far in this way is its *streak*; the window ahead of it is as long as
the streak, or twice that once the streak is longer than what the kernel reads by itself, up to ``most``; and is gone when the
reader jumps. Counted are bytes that were both read and got over: neither reading the same bytes again nor stepping over many makes a
streak longer. At first not more than the streak, because a page fault makes the kernel read 4 MiB around it, which looks like a reader
that begins and then is none.

Invariants:

- ranges that are asked for in one streak follow each other and do not overlap; none reaches past the object, none lies behind the reader;
- no range ends further than ``most`` ahead, but for an end of the object that would be a small GET of its own;
- in a streak, at most ``COST`` bytes are asked for ahead for each byte read; a reader that jumps with each request is read ahead nothing;
- new bytes are asked for when half of the window is used up, a quarter of the window or more at once, up to multiples of ``GRAIN`` from
  the start of the object: slabs are filled whole, by large GETs.

What does not live here: which frames those bytes are, and which of them are there already (``imagefs.cache.fetcher``).
"""

from typing import Final

GRAIN: Final = 4 * 1024 * 1024
"""What large ranges end at a multiple of, in bytes: the window of ``imagefs.cache.layout``."""

MOST: Final = 64 * 1024 * 1024
"""Bytes ahead of a reader, at most. 200 MB/s x 20 ms, compressed 3:1, is 12 MiB, and new bytes are asked for only at half the window."""

COST: Final = 3
"""Bytes that are asked for ahead in a streak, at most, for each byte that is read in it."""

_NEAR: Final = 4 * 1024 * 1024  # what the kernel has in flight for a reader
_STREAK_MIN: Final = 128 * 1024
_START: Final = 1024 * 1024

NOTHING: Final = (0, 0)
"""The range of no bytes."""


class Readahead:
    """Where one reader of one object is, and what was asked for ahead of it."""

    __slots__ = ("_asked", "_base", "_calm", "_cost", "_most", "_next", "_read")

    def __init__(self, most: int = MOST) -> None:
        """``most`` is how many bytes ahead to have in flight or present, at most."""
        self._most = most
        # In bytes of the object: where the streak began, where its furthest request ended, and where what was asked for ahead ends.
        self._base = 0
        self._next = -1
        self._asked = 0
        # Up to where nothing needs to be decided about requests in order: most of them cost a comparison.
        self._calm = 0
        # In bytes: read in this streak, and asked for ahead in it.
        self._read = 0
        self._cost = 0

    def advance(self, offset: int, end: int, size: int) -> tuple[int, int]:
        """Note a request for bytes ``offset`` to ``end`` (exclusive) of ``size``; return the range beyond it to start fetching now.

        The range is empty (``NOTHING``) if nothing is to be asked for. To be called for every request, also one that is answered from RAM.
        """
        ahead = self._next
        if offset == ahead and end <= self._calm:
            self._next = end
            self._read += end - offset
            return NOTHING
        if ahead < 0 or offset < ahead - _NEAR or offset > max(ahead, self._asked) + _NEAR:
            self._base = offset
            self._next = self._asked = self._calm = end
            self._read = end - offset
            self._cost = 0
            return NOTHING
        self._read += end - offset
        if end > ahead:
            self._next = ahead = end
        if offset < self._base:
            self._base = offset
            self._calm = 0
        streak = min(self._read, ahead - self._base)
        if streak < _STREAK_MIN:
            return NOTHING
        window = min(2 * streak if streak > _NEAR else max(streak, min(2 * streak, _START)), self._most)
        if 2 * (self._asked - ahead) >= window:
            return NOTHING
        return self._ask(window, size)

    def decline(self, start: int, end: int) -> None:
        """Take back that the range ``start`` to ``end``, which was returned last, is fetched: it was not."""
        self._cost -= end - start
        self._asked = start
        self._calm = 0

    def _ask(self, window: int, size: int) -> tuple[int, int]:
        """Return what is lacking of the window, cut to what the streak may cost."""
        grain = min(GRAIN, 1 << max(window // 4, 1).bit_length() - 1)
        start = max(self._asked, self._next)
        stop = (self._next + window) // grain * grain
        if size - stop < grain:
            stop = size
        stop = min(stop, start + COST * self._read - self._cost)
        if stop <= start:
            return NOTHING
        self._cost += stop - start
        self._asked = stop
        # Until the reader is past one of these, half a window is there, or all that is left: no window is larger than ``most``, and none
        # of a streak of ``_START`` or more is larger than twice the streak.
        if stop == size:
            self._calm = size
        else:
            calm = (stop + self._base) // 2 if self._next - self._base >= _START else 0
            self._calm = max(stop - self._most // 2, calm)
        return start, stop
