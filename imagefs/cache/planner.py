"""Which ranged GETs bring a set of frames: pure, no I/O.

A GET costs about the same whatever its size, until ``GET_MAX``. So frames of a pack that lie back to back, or with little between them,
become one GET, whichever objects want them.

Invariants:

- every wanted frame lies in exactly one run, however many want it, and all who want it are named there;
- a run moves at most ``limit`` bytes, unless it is one frame that is larger;
- a run begins and ends with a wanted frame, and no more than ``gap`` bytes that nobody wants lie between two that are;
- what is waited for first comes first: runs in the order of their first wanted frame, frames in a run likewise.

What is in flight already is not wanted: leaving it out is the caller's. What does not live here: what to read ahead
(``imagefs.cache.readahead``), and fetching.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from imagefs.format.objectmap import FrameRow

GET_MAX: Final = 8 * 1024 * 1024
"""Bytes that one GET moves, at most, unless a single frame is larger."""

Tag = TypeVar("Tag")
_Wanted = tuple[int, list[Tag], FrameRow]
"""The frame's place in the order of wanting, who wants it, and the frame."""


@dataclass(frozen=True, slots=True)
class Run(Generic[Tag]):
    """One ranged GET: bytes ``start`` to ``end`` (exclusive) of pack number ``pack``.

    ``frames`` are the wanted ones, as (tag, frame), in the order in which they were wanted, not that of the pack. Each lies at
    ``frame.offset - start`` of the GET's bytes, ``frame.stored`` of them; bytes of the GET that lie in no frame are a gap's, to be dropped.
    A frame that is wanted under several tags is named once a tag, side by side: see :meth:`grouped`.
    """

    pack: int
    start: int
    end: int
    frames: list[tuple[Tag, FrameRow]]

    def grouped(self) -> list[tuple[FrameRow, list[Tag]]]:
        """Return each frame once, with all who want it."""
        groups: dict[FrameRow, list[Tag]] = {}
        for tag, frame in self.frames:
            groups.setdefault(frame, []).append(tag)
        return list(groups.items())


def plan_runs(wanted: Iterable[tuple[Tag, FrameRow]], *, limit: int = GET_MAX, gap: int = 0) -> list[Run[Tag]]:
    """Group frames of one object map, given as (tag, frame) in the order in which they are waited for, into runs.

    ``limit`` is how many bytes a run moves at most, ``gap`` how many unwanted ones may lie between two wanted frames.
    """
    tags: dict[FrameRow, list[Tag]] = {}
    for tag, frame in wanted:
        tags.setdefault(frame, []).append(tag)
    items = [(rank, who, frame) for rank, (frame, who) in enumerate(tags.items())]
    items.sort(key=_place)
    planned: list[tuple[int, Run[Tag]]] = []
    pack = start = end = -1
    members: list[_Wanted[Tag]] = []
    for item in items:
        frame = item[2]
        # Frames of a hostile map may overlap: the run's end never moves back.
        stop = max(end, frame.offset + frame.stored)
        if members and frame.pack == pack and frame.offset - end <= gap and stop - start <= limit:
            members.append(item)
            end = stop
            continue
        if members:
            planned.append(_run(pack, start, end, members))
        pack, start, end, members = frame.pack, frame.offset, frame.offset + frame.stored, [item]
    if members:
        planned.append(_run(pack, start, end, members))
    planned.sort(key=_first)
    return [run for _, run in planned]


def _place(item: _Wanted[Tag]) -> tuple[int, int]:
    frame = item[2]
    return frame.pack, frame.offset


def _first(item: tuple[int, Run[Tag]]) -> int:
    return item[0]


def _run(pack: int, start: int, end: int, members: list[_Wanted[Tag]]) -> tuple[int, Run[Tag]]:
    """Make a run of its members; return it after the place of the first of them in the order of wanting."""
    members.sort(key=lambda item: item[0])
    return members[0][0], Run(pack, start, end, [(tag, frame) for _, tags, frame in members for tag in tags])
