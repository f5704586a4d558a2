"""How much of each file GETs brought during a start: GETs name ranges of packs, and the object map says which frames lie there.

Pure, and done once, when a Start's document is written: in a thread, on the map, which nobody changes. It ends in time whatever a map is
like: past ``EXTENTS_MAX`` files are not looked at.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from imagefs.errors import ImageFSError
from imagefs.format.objectmap import HOLE, ObjectMap

EXTENTS_MAX: Final = 500_000
"""Extents that are looked at for one start: half a second of them, or 128 GB of content."""

UNKNOWN: Final = -1

_ARRIVED: Final = 3
_PACK: Final = 7


def note_fetched(document: Mapping[str, Any], objects: ObjectMap) -> None:
    """Give each file of a Start's document what of it was fetched, in bytes of content; ``UNKNOWN`` where that cannot be said."""
    packs: Sequence[str] = document["packs"]
    ranges: dict[str, list[tuple[int, int]]] = {}
    for row in document["gets"]:
        if row[_ARRIVED] >= 0:
            ranges.setdefault(packs[row[_PACK]], []).append((row[_PACK + 1], row[_PACK + 2]))
    come = _Come(objects, ranges)
    for file in document["files"]:
        file["fetched"] = come.of(bytes.fromhex(file["object"])) if file["object"] else 0


class _Come:
    """What has come, by pack."""

    def __init__(self, objects: ObjectMap, ranges: Mapping[str, Iterable[tuple[int, int]]]) -> None:
        self._objects = objects
        self._left = EXTENTS_MAX
        self._frames: dict[int, bool] = {}
        self._ranges = {pack: _joined(spans) for pack, spans in ranges.items()}

    def of(self, digest: bytes) -> int:
        """Return how many bytes of an object have come."""
        try:
            row = self._objects.find(digest)
            if row is None or row.extent_count > self._left:
                return UNKNOWN
            self._left -= row.extent_count
            extents = self._objects.extents(row, 0, row.size)
            return sum(length for _, length, frame, _ in extents if frame != HOLE and self._has(frame))
        except ImageFSError:
            return UNKNOWN

    def _has(self, number: int) -> bool:
        """Say whether all of a frame has come."""
        found = self._frames.get(number)
        if found is None:
            frame = self._objects.frame(number)
            begins, ends = self._ranges.get(self._objects.pack(frame.pack).digest.hex(), ([], []))
            place = bisect_right(begins, frame.offset) - 1
            found = self._frames[number] = place >= 0 and frame.offset + frame.stored <= ends[place]
        return found


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the beginnings and the ends of ranges that do not touch each other, in order."""
    begins: list[int] = []
    ends: list[int] = []
    for begin, end in sorted(spans):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    return begins, ends
