"""Which bytes of which files are touched, and when each was for the first time, in grains.

A file's grains are kept as one integer a window of 64, so that a read of what was touched before costs a look and no more. What is new is a
range; what follows on the last one at once is part of it. Bounded: what is more than ``RANGES_MAX`` ranges is not taken.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from imagefs.format.accesses import GRAIN

RANGES_MAX: Final = 65536

_WINDOW: Final = 64  # grains
_AT_ONCE: Final = 50_000  # us


class Range(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive, whole grains, so it may exceed the size) of a file, first touched at ``at`` (us)."""

    at: int
    file: int
    start: int
    end: int


class Touched:
    """See the module. Files are small integers."""

    __slots__ = ("_ranges", "_seen")

    def __init__(self) -> None:
        """Nothing is."""
        # File, and number of the window, as one integer: the grains that are touched as bits.
        self._seen: dict[int, int] = {}
        self._ranges = array("q")

    def __copy__(self) -> "Touched":
        other = Touched()
        other._seen, other._ranges = dict(self._seen), self._ranges[:]
        return other

    def __len__(self) -> int:
        """Count the ranges."""
        return len(self._ranges) // 4

    def __iter__(self) -> Iterator[Range]:
        """Yield the ranges, which do not overlap, in the order in which they were added."""
        values = self._ranges
        for at in range(0, len(values), 4):
            yield Range(*values[at : at + 4])

    def add(self, file: int, start: int, end: int, at: int) -> bool:
        """Add bytes ``start`` to ``end`` (exclusive) of a file, touched at ``at`` (us); say whether something of it is new."""
        seen, grain, last = self._seen, start // GRAIN, (end - 1) // GRAIN
        is_new = False
        while grain <= last:
            window = grain // _WINDOW
            stop = min(last, window * _WINDOW + _WINDOW - 1)
            mask = (2 << stop % _WINDOW) - (1 << grain % _WINDOW)
            key = file << 44 | window
            had = seen.get(key, 0)
            if mask & ~had:
                if not self._add(file, window * _WINDOW, mask & ~had, at):
                    break
                seen[key] = had | mask
                is_new = True
            grain = stop + 1
        return is_new

    def _add(self, file: int, base: int, mask: int, at: int) -> bool:
        """Add the grains of a mask, whose lowest bit is grain ``base``; False if there is no room."""
        values = self._ranges
        while mask:
            skip = (mask & -mask).bit_length() - 1
            count = (~(mask >> skip) & ((mask >> skip) + 1)).bit_length() - 1
            start, end = (base + skip) * GRAIN, (base + skip + count) * GRAIN
            if values and values[-3] == file and values[-1] == start and 0 <= at - values[-4] <= _AT_ONCE:
                values[-1] = end
            elif len(self) < RANGES_MAX:
                values.extend((at, file, start, end))
            else:
                return False
            mask &= mask + (1 << skip)
        return True

    def merged(self, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield file, start and end (exclusive, within the file's size) of what is touched, by file, without gaps of nothing."""
        last: tuple[int, int, int] | None = None
        for _, file, start, stop in sorted(self, key=lambda found: found[1:]):
            end = min(stop, sizes[file])
            if last is not None and last[0] == file and start <= last[2]:
                last = (file, last[1], max(last[2], end))
                continue
            if last is not None:
                yield last
            last = (file, start, end)
        if last is not None:
            yield last
