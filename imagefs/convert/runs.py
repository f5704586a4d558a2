"""Which ranged GETs bring a set of frames: frames that lie back to back in a pack are one. Pure.

It counts as the reader's planner does (``imagefs.cache.planner``, which conversion must not know; a test compares them), so that what an
optimized image promises is what a start then asks for.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from imagefs.format.objectmap import FrameRow

GET_MAX: Final = 8 * 1024 * 1024
"""Bytes that one GET moves, at most, unless a single frame is larger."""


class Run(NamedTuple):
    """One GET: bytes ``start`` to ``end`` (exclusive) of pack number ``pack``. ``frames`` are numbers and rows, in the pack's order."""

    pack: int
    start: int
    end: int
    frames: list[tuple[int, FrameRow]]


def runs_of(frames: Iterable[tuple[int, FrameRow]], *, limit: int = GET_MAX, gap: int = 0) -> list[Run]:
    """Group frames of one object map, given as (number, frame), in the order of packs and places.

    A run moves at most ``limit`` bytes, and no more than ``gap`` that nobody wants lie between two of its frames.
    """
    found: list[Run] = []
    pack = start = end = -1
    members: list[tuple[int, FrameRow]] = []
    for number, row in sorted(frames, key=_place):
        # Frames of a hostile map may overlap: the run's end never moves back.
        stop = max(end, row.offset + row.stored) if row.pack == pack else row.offset + row.stored
        if members and row.pack == pack and row.offset - end <= gap and stop - start <= limit:
            members.append((number, row))
            end = stop
            continue
        if members:
            found.append(Run(pack, start, end, members))
        pack, start, end, members = row.pack, row.offset, row.offset + row.stored, [(number, row)]
    if members:
        found.append(Run(pack, start, end, members))
    return found


def _place(item: tuple[int, FrameRow]) -> tuple[int, int]:
    row = item[1]
    return row.pack, row.offset
