"""What a profile says is to be fetched, in the order of need: pure, no I/O.

A profile names bytes of objects; what moves are frames. So each access becomes the frames that hold it, each once, needed when the first
access to it is. What is not in the image at all is left out: a profile may be another image's, which shares some of its content. What large
objects lack to be whole, of which starts touch most, comes in the end: a whole object is the kernel's to serve from the next start on.

Invariants:

- a step is handed out once, unless it is put back (:meth:`Plan.put_back`), which each may be once;
- steps of at least :data:`OFTEN` of all starts come before all others, and among each of the two, in the order of need; but for those that
  a reader has left far behind (:meth:`Plan.reach`), which come after the rest;
- what no start touches is a ``REST``th of what they do, at most, and counts as nothing that the profile knows;
- whatever the profile says, no more than :data:`EXTENTS_MAX` extents are looked at and no range outside of an object is asked for.

What does not live here: how many bytes may be under way (``prefetch_trust``), and fetching (``prefetch``).
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

from imagefs.cache.planner import plan_runs
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import HOLE, FrameRow, ObjectMap, ObjectRow
from imagefs.format.profile import EVERY_START, Access

OFTEN: Final = EVERY_START // 2
"""What so many starts touch is fetched in any case."""

SELDOM: Final = EVERY_START // 8
"""What fewer starts touch is not fetched; what lies between, where nobody else wants the link."""

EXTENTS_MAX: Final = 1 << 18
"""Extents that are looked at for one profile: 64 GiB of what this project converts."""

MOST: Final = 4
"""Of an object of which all but so little is touched, a fourth, the rest is fetched too."""

REST: Final = 32
"""Of all that is fetched in any case, so little is fetched beside it, a thirty-second at most: the objects first that lack least."""

GAP: Final = 64 * 1024
"""Bytes that nobody wants between two frames that one GET brings: as much as comes in a third of a millisecond at 200 MB/s."""

FAR: Final = 8 * 1024 * 1024
"""Bytes as stored that a reader may be ahead of the plan before the plan follows: what lies between is about to be asked for anyway."""


class Step(NamedTuple):
    """One frame: bytes ``start`` to ``end`` (exclusive) of an object lie in it, or all of a small object that shares it (``small``).

    It is needed ``at`` milliseconds after the mount, by ``share`` (of ``EVERY_START``) of all starts; by none (0) where it is what a large
    object lacks. ``place`` is where it is stored.
    """

    frame: int
    at: int
    share: int
    row: ObjectRow
    start: int
    end: int
    small: bool
    place: FrameRow

    @property
    def stored(self) -> int:
        """Its bytes in its pack."""
        return self.place.stored

    @property
    def length(self) -> int:
        """Its bytes of content."""
        return self.place.length


def steps_of(accesses: Iterable[Access], objects: ObjectMap) -> list[Step]:
    """Return the frames that hold what is accessed, each once, in the order of need. Blocks: about 8 us an access. Raises nothing.

    Where the map is unsound there is no step: whoever reads there is told.
    """
    found: dict[int, Step] = {}
    left = EXTENTS_MAX
    for access in accesses:
        row = objects.find(access.object) if access.share >= SELDOM else None
        if row is None or left <= 0:
            continue
        try:
            extents = objects.extents(row, access.start, access.end, most=left)
            left -= len(extents)
            for offset, length, number, _ in extents:
                if number == HOLE:
                    continue
                known = found.get(number)
                if known is None:
                    frame = objects.frame(number)
                    small = row.extent_count == 1 and frame.length != row.size
                    end = offset + length
                    found[number] = Step(number, access.at, access.share, row, offset, end, small, frame)
                elif known.at > access.at or known.share < access.share:
                    found[number] = known._replace(at=min(known.at, access.at), share=max(known.share, access.share))
        except ImageFSError:
            continue
    _add_rests(found, objects, left)
    return sorted(found.values(), key=_need)


def _add_rests(found: dict[int, Step], objects: ObjectMap, left: int) -> None:
    """Add what objects lack of which most is touched, as much as may be; ``left`` is how many extents may be looked at."""
    content = 0
    touched: dict[bytes, list[Step]] = {}
    for step in found.values():
        if step.share >= OFTEN:
            content += step.length
            if step.row.extent_count > 1 and not step.small:
                touched.setdefault(step.row.digest, []).append(step)
    rests: list[tuple[int, list[Step]]] = []
    for steps in touched.values():
        row = steps[0].row
        if sum(step.end - step.start for step in steps) < row.size - row.size // MOST or left < row.extent_count:
            continue
        left -= row.extent_count
        try:
            rest = _rest_of(row, max(step.at for step in steps), found, objects)
        except ImageFSError:
            continue
        if rest:
            rests.append((sum(step.length for step in rest), rest))
    may = content // REST
    for length, rest in sorted(rests, key=lambda of: (of[0], of[1][0].frame)):
        if length > may:
            break
        may -= length
        found.update((step.frame, step) for step in rest)


def _rest_of(row: ObjectRow, at: int, found: dict[int, Step], objects: ObjectMap) -> list[Step]:
    """Return the frames of an object that are not among those found. ``IntegrityError`` for an unsound map."""
    rest: dict[int, Step] = {}
    for offset, length, number, _ in objects.extents(row, 0, row.size):
        if number != HOLE and number not in found:
            rest[number] = Step(number, at, 0, row, offset, offset + length, small=False, place=objects.frame(number))
    return list(rest.values())


def _need(step: Step) -> tuple[int, int]:
    return step.at, step.frame


class Plan:
    """The steps of one profile, and which of them were handed out."""

    __slots__ = ("_again", "_at", "_behind", "_first", "_gets", "_places", "_rare", "content", "stored")

    def __init__(self, steps: Iterable[Step]) -> None:
        """``steps`` are in the order of need. ``content`` and ``stored`` are the bytes of those that come in any case."""
        ordered = list(steps)
        often = [step for step in ordered if step.share >= OFTEN]
        self._first = deque(often)
        self._rare = deque(sorted((step for step in ordered if step.share < OFTEN), key=lambda step: not step.share))
        # What a reader has left behind, what has failed, and which frames that may not do again.
        self._behind: deque[Step] = deque()
        self._again: set[int] = set()
        # What was taken from these, as GETs.
        self._gets: deque[list[Step]] = deque()
        # Of each frame, when it is needed; and of those in the first queue, the bytes as stored that come before it.
        self._at = {step.frame: step.at for step in ordered if step.share}
        self._places: dict[int, int] = {}
        self.stored = 0
        for step in often:
            self._places[step.frame] = self.stored
            self.stored += step.stored
        self.content = sum(step.length for step in often)

    def __contains__(self, frame: object) -> bool:
        """Whether the profile knows a frame, whatever has become of it."""
        return frame in self._at

    def at(self, frame: int) -> int | None:
        """Return when a frame is needed, in milliseconds; None if the profile does not know it."""
        return self._at.get(frame)

    def is_over(self, *, rare: bool) -> bool:
        """Say whether nothing is left; ``rare``: of what few starts touch, too."""
        return not (self._gets or self._first or self._behind or (rare and self._rare))

    def peek(self, look: int, *, limit: int, until: float, rare: bool) -> list[Step]:
        """Return the steps that one GET of ``limit`` bytes as stored brings, or a little more; nothing if nothing is to be had now.

        GETs are made of ``look`` bytes of steps at a time, and are in the order of the first of theirs that is needed; so a GET brings what
        lies beside that and is needed within as many bytes. The others are as for :meth:`take`.
        """
        if not self._gets:
            steps = self.take(look, until=until, rare=rare)
            runs = plan_runs(((step, step.place) for step in steps), limit=limit, gap=GAP)
            self._gets.extend([step for step, _ in run.frames] for run in runs)
        return self._gets[0] if self._gets else []

    def pop(self) -> None:
        """Take what :meth:`peek` returned as handed out."""
        self._gets.popleft()

    def take(self, stored: int, *, until: float, rare: bool) -> list[Step]:
        """Hand out steps of together about ``stored`` bytes as stored, one at least, of those needed by ``until`` (milliseconds).

        ``rare``: of what few starts touch too, when nothing else is left.
        """
        for queue in (self._first, self._behind, self._rare):
            if queue is self._rare and not rare:
                break
            if queue:
                return self._take(queue, stored, until)
        return []

    def _take(self, queue: deque[Step], stored: int, until: float) -> list[Step]:
        taken: list[Step] = []
        while queue and queue[0].at <= until and (not taken or stored >= queue[0].stored):
            stored -= queue[0].stored
            taken.append(queue.popleft())
        return taken

    def reach(self, frame: int) -> None:
        """Note that a reader is at a frame. If that is far ahead of what was handed out, the plan goes on from there."""
        place = self._places.get(frame)
        if place is None or not self._first or place - self._places[self._first[0].frame] <= FAR:
            return
        count = next((index for index, step in enumerate(self._first) if self._places[step.frame] >= place), len(self._first))
        self._behind.extend(islice(self._first, count))
        for _ in range(count):
            self._first.popleft()

    def put_back(self, steps: Iterable[Step]) -> int:
        """Take back steps that could not be had, to be handed out again, once each; return the bytes of content of the others."""
        lost = 0
        for step in steps:
            if step.frame in self._again:
                lost += step.length
            else:
                self._again.add(step.frame)
                self._behind.append(step)
        return lost
