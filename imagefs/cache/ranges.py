"""Which bytes of a file are there: a set of ranges, merged where they touch. Pure.

A file that is read from its beginning to its end has one range, whatever its size. What does not live here: the bytes.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

_PAIR: Final = struct.Struct("<QQ")


class RangeSet:
    """Ranges ``start`` to ``end`` (exclusive), in bytes; ``total`` is how many bytes they cover."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Start with ``ranges``, in any order."""
        # Invariant: starts[i] < ends[i] < starts[i + 1].
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges in order."""
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """Count the ranges."""
        return len(self._starts)

    def add(self, start: int, end: int) -> int:
        """Add a range; return how many of its bytes were not there."""
        if start >= end:
            return 0
        # All ranges that touch the new one become one with it.
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        before = 0
        low, high = start, end
        if first < last:
            low = min(start, self._starts[first])
            high = max(end, self._ends[last - 1])
            before = sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [low]
        self._ends[first:last] = [high]
        new = high - low - before
        self.total += new
        return new

    def remove(self, start: int, end: int) -> int:
        """Take a range out; return how many of its bytes were there."""
        if start >= end:
            return 0
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return 0
        before = sum(self._ends[first:last]) - sum(self._starts[first:last])
        left = [(self._starts[first], start)] if self._starts[first] < start else []
        right = [(end, self._ends[last - 1])] if self._ends[last - 1] > end else []
        kept = left + right
        self._starts[first:last] = [low for low, _ in kept]
        self._ends[first:last] = [high for _, high in kept]
        gone = before - sum(high - low for low, high in kept)
        self.total -= gone
        return gone

    def covers(self, start: int, end: int) -> bool:
        """Say whether all of a range is there."""
        index = bisect_right(self._starts, start) - 1
        return start >= end or (index >= 0 and self._ends[index] >= end)

    def encode(self) -> bytes:
        """Return the ranges as pairs of little-endian 64-bit numbers."""
        return b"".join(_PAIR.pack(start, end) for start, end in self)

    @classmethod
    def decode(cls, data: bytes) -> "RangeSet":
        """Read what :meth:`encode` wrote. ``ValueError`` for anything else."""
        if len(data) % _PAIR.size:
            raise ValueError("not a set of ranges")
        found = cls()
        before = -1
        for start, end in _PAIR.iter_unpack(data):
            if not before < start < end:
                raise ValueError("not a set of ranges")
            found._starts.append(start)
            found._ends.append(end)
            found.total += end - start
            before = end
        return found
