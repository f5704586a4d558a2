"""What lies near a miss, and how much of it to fetch along: pure, no I/O.

A program that starts touches many files, one after the other, a round trip each; but files that are used together lie together in the
packs. So while a reader waits for what it misses, what lies around that is fetched too, as far as the link brings it in about the time
that the reader waits anyhow (:class:`Reach`), and as long as enough of it turns out to be of use (:class:`Neighbours`, its credit).

Invariants:

- what is fetched along of an image is at most ``CREDIT`` bytes of content, half of what was missed, and ``EARNED`` times what was read of
  what had been fetched ahead: random reads of a large image move half as much again as they must, in the long run;
- the reach is between ``REACH_MIN`` and ``REACH_MAX``, and none where the store answers at once.

What does not live here: reading ahead of a sequential reader (``readahead``), GETs (``planner``), and fetching (``fetcher``).
"""

from array import array
from itertools import islice
from typing import Final, NamedTuple

from imagefs.format.objectmap import HOLE, ObjectMap, ObjectRow

REACH_MIN: Final = 128 * 1024
REACH_MAX: Final = 2 * 1024 * 1024
_REACH_START: Final = 512 * 1024

CREDIT: Final = 128 * 1024 * 1024
"""Bytes of content that are fetched along, of an image, before anything shows whether that is of use."""

EARNED: Final = 4
_LOCAL_SECONDS: Final = 0.005
_WHOLE_MAX: Final = 1024 * 1024
"""Bytes of the objects with several frames that count as neighbours; larger ones lie in packs of their own."""

_EXTENTS_MAX: Final = 64
_STEPS_MAX: Final = 1024
"""Frames that are looked at in one direction."""


class Reach:
    """How far to fetch to either side of a miss, in bytes as stored: so far as takes about three times as long as one small GET."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        """Begin with a guess."""
        self._bytes = _REACH_START

    def around(self, latency: float | None) -> int:
        """Return the reach on a link whose small GETs take ``latency`` seconds (None: not known): 0 on one that answers at once."""
        return self._bytes if latency is not None and latency >= _LOCAL_SECONDS else 0

    def took(self, seconds: float, latency: float, moved: int) -> None:
        """Take in that ``moved`` bytes as stored, fetched along, arrived within ``seconds``."""
        if seconds > 4 * latency:
            self._bytes = max(REACH_MIN, self._bytes * 2 // 3)
        elif seconds < 3 * latency and moved >= self._bytes:
            self._bytes = min(REACH_MAX, self._bytes * 3 // 2)


class Near(NamedTuple):
    """What lies near a frame, and how far from it in bytes as stored: a frame of small objects, or a whole object of a few frames."""

    distance: int
    frame: int
    row: ObjectRow | None


class Neighbours:
    """Which frames of an image lie near one, and what may still be spent on them. ``build`` runs in a thread, the rest on trio's."""

    __slots__ = ("_asked", "_objects", "_owners", "credit")

    def __init__(self, objects: ObjectMap) -> None:
        """Cheap: nothing of the map is looked at."""
        self._objects = objects
        self._owners: array[int] | None = None
        self._asked = False
        self.credit = CREDIT

    @property
    def is_built(self) -> bool:
        """Whether the other methods may be called."""
        return self._owners is not None

    def is_to_be_built(self) -> bool:
        """Say whether the caller is the one who has to call ``build``: that is so once, also if it fails."""
        asked, self._asked = self._asked, True
        return not asked

    def build(self) -> None:
        """Read of the map what is needed. Blocks: about 0.1 us an object. ``IntegrityError``."""
        self._owners = self._objects.owners()

    def is_large(self, frame: int) -> bool:
        """Say whether a frame is of an object with several of them: what lies near it then is more of that object."""
        assert self._owners is not None
        return bool(self._owners[frame])

    def around(self, frame: int, reach: int) -> list[Near]:
        """Return what lies within ``reach`` bytes as stored to either side of ``frame``, about the nearest first. ``IntegrityError``.

        The rest of an object that ``frame`` is a part of is not returned, nor counted.
        """
        after = self._walk(range(frame + 1, self._objects.frame_count), frame, reach)
        before = self._walk(range(frame - 1, -1, -1), frame, reach)
        return sorted(after + before)

    def _walk(self, numbers: range, frame: int, reach: int) -> list[Near]:
        owners, objects = self._owners, self._objects
        assert owners is not None
        own = owners[frame]
        found: list[Near] = []
        distance = last = 0
        for number in islice(numbers, _STEPS_MAX):
            owner = owners[number]
            if owner and owner in (own, last):
                continue
            last = owner
            row = objects.object(owner - 1) if owner else None
            if row is not None and (row.size > _WHOLE_MAX or row.extent_count > _EXTENTS_MAX):
                continue
            distance += objects.frame(number).stored if row is None else self._stored(row)
            if distance > reach:
                break
            found.append(Near(distance, number, row))
        return found

    def _stored(self, row: ObjectRow) -> int:
        """Return the bytes of an object of a few frames as stored."""
        extents = self._objects.extents(row, 0, row.size)
        return sum(self._objects.frame(extent.frame).stored for extent in extents if extent.frame != HOLE)

    # -- whether it is of use -------------------------------------------------------------------------------------------------------

    def missed(self, count: int) -> None:
        """Note that a reader waits for ``count`` bytes of content."""
        self._earn(count // 2)

    def used(self, count: int) -> None:
        """Note that ``count`` bytes of content that were fetched along were read."""
        self._earn(EARNED * count)

    def spend(self, count: int) -> None:
        """Note that ``count`` bytes of content are fetched along."""
        self.credit -= count

    def _earn(self, count: int) -> None:
        self.credit = min(CREDIT, self.credit + count)
