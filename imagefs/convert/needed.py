"""What of an image its starts need, in which order, and how that goes into new frames: a profile and an object map become a plan. Pure.

The rules, which ``docs/design/conversion.md`` gives the reasons for (a change of them is a change of
:data:`imagefs.format.optimized.LAYOUT`):

- what a share of at least :data:`SHARE_MIN` of starts touches moves; what at least :data:`ALWAYS` touch comes before the rest;
- within these two, everything is in the order in which it is needed first;
- a small object, one that shares its frame, is joined with those needed after it into new frames of up to the image's frame size, whole,
  however little of it is touched;
- of any other object the frames that hold what is touched are copied. It stays cut where it was, so what a host has of it, in RAM or
  on SSD, is of use to both images.

Invariants: the plan depends on the profile's accesses and on the map alone; nothing is in it twice; nothing that the profile does not touch
moves. What does not live here: reading and writing packs (``imagefs.convert.repack``).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from imagefs.convert.runs import runs_of
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, ObjectRow
from imagefs.format.optimized import Start
from imagefs.format.pack import MAX_FRAME
from imagefs.format.profile import EVERY_START, Access

SHARE_MIN: Final = -(-EVERY_START // 4)
"""Share of starts from which an access counts: a quarter. What fewer need would stand in the way of the others."""

ALWAYS: Final = -(-EVERY_START * 3 // 4)
"""Share from which it is needed by nearly all. What is needed by some comes behind, so it parts nothing that all need."""


@dataclass(frozen=True, slots=True)
class Member:
    """A small object: ``size`` bytes at ``within`` of the content of frame ``frame`` of the map."""

    digest: bytes
    size: int
    frame: int
    within: int


@dataclass(frozen=True, slots=True)
class Copied:
    """A new frame that is frame number ``frame`` of the map, as it is stored; ``length`` bytes of content."""

    frame: int
    length: int


@dataclass(slots=True)
class Joined:
    """A new frame of small objects back to back, ``length`` bytes of content."""

    members: list[Member] = field(default_factory=list)
    length: int = 0


@dataclass(slots=True)
class Plan:
    """The new frames in order, and which extents move there: by object and offset in it, the index in ``frames`` and the offset in it.

    ``content`` is bytes in ``frames``. Of the profile's accesses ``used`` count, ``rare`` are of too few starts, and ``foreign`` are of
    objects, or beyond the end of objects, that the map does not have.
    """

    frames: list[Copied | Joined] = field(default_factory=list)
    moves: dict[bytes, dict[int, tuple[int, int]]] = field(default_factory=dict)
    content: int = 0
    used: int = 0
    rare: int = 0
    foreign: int = 0


def plan(objects: ObjectMap, accesses: Iterable[Access], *, frame_size: int) -> Plan:
    """Plan what moves. ``accesses`` are in the order of need; small objects are joined up to ``frame_size`` bytes. ``IntegrityError``."""
    made = _Planner(objects, max(1, min(frame_size, MAX_FRAME)))
    often, sometimes = _classes(accesses, made.result)
    for group in (often, sometimes):
        made.add(group)
    return made.result


def start_of(objects: ObjectMap, accesses: Iterable[Access]) -> Start:
    """Return what a start fetches that touches what counts of ``accesses``, if it asks for all of it at once. ``IntegrityError``."""
    frames: set[int] = set()
    often, sometimes = _classes(accesses, Plan())
    for _, extents in _touched(objects, often + sometimes, Plan()):
        frames.update(extent.frame for extent in extents)
    runs = runs_of((number, objects.frame(number)) for number in frames)
    return Start(len(runs), sum(run.end - run.start for run in runs))


def _classes(accesses: Iterable[Access], result: Plan) -> tuple[list[Access], list[Access]]:
    """Return what nearly all starts need, and what some do; count the rest."""
    often: list[Access] = []
    sometimes: list[Access] = []
    for access in accesses:
        if access.share < SHARE_MIN:
            result.rare += 1
        else:
            (often if access.share >= ALWAYS else sometimes).append(access)
    return often, sometimes


def _touched(objects: ObjectMap, accesses: Iterable[Access], result: Plan) -> Iterator[tuple[ObjectRow, list[Extent]]]:
    """Yield each access's object and the extents with content that it touches; count what is used and what is foreign."""
    rows: dict[bytes, ObjectRow | None] = {}
    for access in accesses:
        digest = access.object
        if digest not in rows:
            rows[digest] = objects.find(digest)
        row = rows[digest]
        if row is None or access.start >= min(access.end, row.size):
            result.foreign += 1
            continue
        result.used += 1
        yield row, [extent for extent in objects.extents(row, access.start, access.end) if extent.frame != HOLE]


class _Planner:
    """A plan in the making."""

    def __init__(self, objects: ObjectMap, frame_size: int) -> None:
        self._objects = objects
        self._frame_size = frame_size
        self._copies: dict[int, int] = {}
        self.result = Plan()

    def add(self, accesses: Sequence[Access]) -> None:
        """Add what ``accesses`` touch and is not there yet. It shares no frame with what comes in another call."""
        result = self.result
        joined: Joined | None = None
        at = 0
        for row, extents in _touched(self._objects, accesses, result):
            member = self._small(row, extents)
            if member is None:
                self._copy(row, extents)
            elif row.digest not in result.moves:
                if joined is None or joined.length + member.size > self._frame_size:
                    # Its place is where it is needed first, whatever is copied before it is full.
                    joined, at = Joined(), len(result.frames)
                    result.frames.append(joined)
                result.moves[row.digest] = {0: (at, joined.length)}
                joined.members.append(member)
                joined.length += member.size
                result.content += member.size

    def _small(self, row: ObjectRow, extents: list[Extent]) -> Member | None:
        """Return the object as a member of a joined frame, None if it does not lie in a frame with others."""
        if row.extent_count != 1 or not extents:
            return None
        _, _, frame, within = extents[0]
        if self._objects.frame(frame).length == row.size:
            return None
        return Member(row.digest, row.size, frame, within)

    def _copy(self, row: ObjectRow, extents: list[Extent]) -> None:
        result = self.result
        own = result.moves.setdefault(row.digest, {}) if extents else {}
        for offset, _, frame, within in extents:
            if offset in own:
                continue
            index = self._copies.get(frame)
            if index is None:
                index = self._copies[frame] = len(result.frames)
                length = self._objects.frame(frame).length
                result.frames.append(Copied(frame, length))
                result.content += length
            own[offset] = (index, within)
