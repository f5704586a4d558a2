"""Which ranged GETs bring a set of frames: pure, no I/O.

Frames that lie back to back in one pack become one GET, up to ``GET_MAX`` bytes: a GET costs about the same whatever its size, until then.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from imagefs.format.objectmap import FrameRow

GET_MAX: Final = 8 * 1024 * 1024
"""Bytes that one GET moves, at most, unless a single frame is larger."""


@dataclass(frozen=True, slots=True)
class Run:
    """One ranged GET: bytes ``start`` to ``end`` (exclusive) of pack number ``pack``; ``frames`` lie there, as (piece, frame), in order."""

    pack: int
    start: int
    end: int
    frames: list[tuple[int, FrameRow]]


def plan_runs(wanted: Iterable[tuple[int, FrameRow]], limit: int = GET_MAX) -> list[Run]:
    """Group frames, given as (piece, frame) in the order of the object, into runs of at most ``limit`` bytes.

    The order is kept: what a reader waits for first is asked for first.
    """
    runs: list[Run] = []
    pack = start = end = -1
    frames: list[tuple[int, FrameRow]] = []
    for item in wanted:
        frame = item[1]
        if frames and frame.pack == pack and frame.offset == end and end + frame.stored - start <= limit:
            frames.append(item)
            end += frame.stored
            continue
        if frames:
            runs.append(Run(pack, start, end, frames))
        pack, start, end, frames = frame.pack, frame.offset, frame.offset + frame.stored, [item]
    if frames:
        runs.append(Run(pack, start, end, frames))
    return runs
