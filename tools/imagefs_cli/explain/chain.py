"""The critical path: which waits, one after the other, a start's length consists of. Pure.

From the last thing that happened one goes back: to the read that ended last before it, to that read's beginning, and so on. Between two
reads the program computed (or waited for something that is not ours), unless a process that it started came and went in between: then it
is taken to have waited for that one, whose own reads fill the gap. What other threads and processes waited for meanwhile made the start no
longer, and is not on the path.

Invariant: the segments cover the time from the mount to the last event, in order, without gaps and overlaps. What does not live here: what
a read waited for (``waits``).
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from imagefs.format.start import Start

NOBODY: Final = -1
"""Who is not known: also an index of processes, as readers have it."""

_DEPTH_MAX: Final = 32
"""Processes that start each other, at most: what those below did counts as the program's time."""


class Segment(NamedTuple):
    """Microseconds ``begin`` to ``end`` (exclusive) of a start: in the read of index ``read``, or if that is -1 in a program of its own."""

    begin: int
    end: int
    read: int
    process: int


@dataclass(frozen=True, slots=True)
class _Line:
    """What one process did: its reads (begin, end, index) in order, for each the place of that which ends last up to it, and its life."""

    process: int
    reads: list[tuple[int, int, int]]
    latest: list[int]
    began: int
    ended: int


def ended(start: Start) -> int:
    """Return when the last thing happened, in us since the mount: a read was answered, or a file opened."""
    answered = max((read.at + read.wait for read in start.reads), default=0)
    return max(0, answered, max((opened.at for opened in start.opens), default=0))


def begun(start: Start) -> int:
    """Return when the first thing happened, in us since the mount; 0 if nothing did."""
    moments = [read.at for read in start.reads]
    moments += (opened.at for opened in start.opens)
    return max(0, min(moments, default=0))


def critical_path(start: Start) -> list[Segment]:
    """Return the segments of the critical path."""
    return _Path(start).segments(ended(start))


class _Path:
    """Goes back through a start."""

    def __init__(self, start: Start) -> None:
        self._parents = [process.parent for process in start.processes]
        self._lines = _lines(start)
        self._children: dict[int, list[_Line]] = {}
        for line in sorted(self._lines.values(), key=attrgetter("ended", "began")):
            if line.process != NOBODY and self._parents[line.process] != line.process:
                self._children.setdefault(self._parents[line.process], []).append(line)
        self._children.pop(NOBODY, None)
        self._found: list[Segment] = []

    def segments(self, end: int) -> list[Segment]:
        """Return the path to ``end``."""
        at, left = end, dict(self._lines)
        line = max(left.values(), key=lambda line: (line.ended, -line.process), default=None)
        while at > 0 and line is not None:
            del left[line.process]
            floor = max(0, min(at, line.began))
            self._walk(line, floor, at, 0)
            at, line = floor, self._before(line, floor, left)
        self._add(0, at, -1, NOBODY)
        self._found.reverse()
        return self._found

    def _before(self, line: _Line, at: int, left: dict[int, _Line]) -> _Line | None:
        """Return what to go on with before a process's first event: its parent, or else who did something last."""
        parent = left.get(self._parents[line.process]) if line.process != NOBODY else None
        if parent is not None and parent.began < at:
            return parent
        others = (other for other in left.values() if other.began < at)
        return max(others, key=lambda other: (min(at, other.ended), -other.process), default=None)

    def _walk(self, line: _Line, low: int, high: int, depth: int) -> None:
        """Go back from ``high`` to ``low`` along what one process did."""
        at = high
        while at > low:
            place = bisect_left(line.reads, (at, -1, -1)) - 1
            if place < 0:
                break
            begin, end, index = line.reads[line.latest[place]]
            if end <= low:
                break
            self._gap(line, end, at, depth)
            at = min(at, end)
            begin = max(begin, low)
            self._add(begin, at, index, line.process)
            at = begin
        self._gap(line, low, at, depth)

    def _gap(self, line: _Line, low: int, high: int, depth: int) -> None:
        """Fill a time in which a process waited for no read: with what those did that it started and that came and went meanwhile."""
        at = high
        children = self._children.get(line.process, []) if depth < _DEPTH_MAX and high > low else []
        for place in range(bisect_right(children, high, key=attrgetter("ended")) - 1, -1, -1):
            child = children[place]
            if child.ended <= low or at <= low:
                break
            if low <= child.began < child.ended <= at:
                self._add(child.ended, at, -1, line.process)
                self._walk(child, child.began, child.ended, depth + 1)
                at = child.began
        self._add(low, at, -1, line.process)

    def _add(self, begin: int, end: int, read: int, process: int) -> None:
        """Add what comes before all that was found: neighbours that are the same program's own time become one."""
        if end <= begin:
            return
        last = self._found[-1] if self._found else None
        if last is not None and last.read == read == -1 and last.process == process:
            self._found[-1] = last._replace(begin=begin)
        else:
            self._found.append(Segment(begin, end, read, process))


def _lines(start: Start) -> dict[int, _Line]:
    reads: dict[int, list[tuple[int, int, int]]] = {}
    lives: dict[int, tuple[int, int]] = {}

    def see(process: int, begin: int, end: int) -> None:
        before = lives.get(process, (begin, end))
        lives[process] = min(begin, before[0]), max(end, before[1])

    for index, read in enumerate(start.reads):
        end = read.at + read.wait
        if read.wait:  # one that took no time is nothing to go back along
            reads.setdefault(read.process, []).append((read.at, end, index))
        see(read.process, read.at, end)
    for opened in start.opens:
        see(opened.process, opened.at, opened.at)
    return {process: _line(process, sorted(reads.get(process, [])), life) for process, life in lives.items()}


def _line(process: int, reads: list[tuple[int, int, int]], life: tuple[int, int]) -> _Line:
    latest: list[int] = []
    best = 0
    for place, (_, end, _index) in enumerate(reads):
        best = place if end >= reads[best][1] else best
        latest.append(best)
    return _Line(process, reads, latest, *life)
