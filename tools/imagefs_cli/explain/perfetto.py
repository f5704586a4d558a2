"""A start as a trace for Perfetto (https://ui.perfetto.dev) and other viewers of the Trace Event Format, as JSON. Pure.

Slices of one track must nest there, and reads and GETs overlap: so each process and each kind of GET has as many tracks as needed, and what
overlaps goes to the next one. Tracks:

- ``start``: the critical path, each wait with what it was for inside it;
- a group for each kind of GET, with queue, first byte, transfer and decoding inside each; an arrow leads from a GET to who waited for it;
- a group for each process: its reads, and its opens as instants;
- counters: GETs in flight and at the gate, and bytes that have come.

Times are in microseconds since the mount. What does not live here: what the values mean (``analysis``).
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from imagefs.format.start import KINDS, TIERS, Get
from imagefs_cli.explain import waits
from imagefs_cli.explain.analysis import Analysis, outcome
from imagefs_cli.explain.text import file_name

_START: Final = 1
_GETS: Final = 2
_COUNTERS: Final = 9
_PROCESSES: Final = 10
"""Ids of groups: Perfetto's processes."""

Event = dict[str, Any]


def trace(found: Analysis) -> bytes:
    """Return the trace of a start."""
    start = found.start
    places: dict[int, tuple[int, int, int, int]] = {}
    events = [*_path(found), *_gets(found, places), *_processes(found, places), *_counters(found)]
    return msgspec.json.encode(
        {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {
                "image": start.ref or start.manifest,
                "mountpoint": start.mountpoint,
                "began": str(start.began),
                "advice": found.verdict.sentence,
            },
        }
    )


class _Lanes:
    """Tracks of one group: each slice goes to the first that is free."""

    def __init__(self, group: int, name: str, order: int) -> None:
        self.events: list[Event] = [
            {"ph": "M", "name": "process_name", "pid": group, "tid": 0, "ts": 0, "args": {"name": name}},
            {"ph": "M", "name": "process_sort_index", "pid": group, "tid": 0, "ts": 0, "args": {"sort_index": order}},
        ]
        self._group = group
        self._busy: list[tuple[int, int]] = []
        self._free: list[int] = []
        self._count = 0

    def place(self, begin: int, end: int) -> int:
        """Return the track of a slice. Slices come in the order of their beginnings."""
        while self._busy and self._busy[0][0] <= begin:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        if not self._free:
            self._count += 1
            lane = self._count
            self.events.append({"ph": "M", "name": "thread_name", "pid": self._group, "tid": lane, "ts": 0, "args": {"name": f"{lane}"}})
        else:
            lane = heapq.heappop(self._free)
        heapq.heappush(self._busy, (end, lane))
        return lane

    def slice(self, lane: int, begin: int, end: int, name: str, category: str, args: dict[str, Any] | None = None) -> None:
        """Add a slice."""
        event: Event = {"ph": "X", "name": name, "cat": category, "pid": self._group, "tid": lane, "ts": begin, "dur": end - begin}
        if args:
            event["args"] = args
        self.events.append(event)


def _path(found: Analysis) -> Iterator[Event]:
    lanes = _Lanes(_START, "critical path", 0)
    at, ended = found.before_us, found.before_us + found.length_us
    lanes.place(0, max(1, ended))
    for step in found.steps:
        if step.at_us > at:
            lanes.slice(1, at, step.at_us, "program", "program")
        end = step.at_us + step.length_us
        read = found.start.reads[step.read]
        lanes.slice(
            1, step.at_us, end, file_name(found, read.file), "wait", {"tier": TIERS[read.tier], "process": _title(found, read.process)}
        )
        inner = step.at_us
        for name, part in zip(waits.KINDS, step.parts, strict=True):
            if part and part < step.length_us:
                lanes.slice(1, inner, inner + part, name, "wait")
            inner += part
        at = end
    if at < ended:
        lanes.slice(1, at, ended, "program", "program")
    yield from lanes.events


def _spans(get: Get, until: int) -> tuple[int, int]:
    """Return when a GET began, and when it was done, or how far it is."""
    return get.queued, max(get.queued + 1, until if get.arrived == -1 else max(get.arrived, get.decoded))


def _gets(found: Analysis, places: dict[int, tuple[int, int, int, int]]) -> Iterator[Event]:
    """Yield the events of GETs, and say in ``places`` in which group and track, from when to when, each is."""
    start = found.start
    for kind, title in enumerate(KINDS):
        mine = [index for index, get in enumerate(start.gets) if get.kind == kind]
        if not mine:
            continue
        lanes = _Lanes(_GETS + kind, f"GETs: {title}", 1 + kind)
        for index in sorted(mine, key=lambda index: start.gets[index].queued):
            get, use = start.gets[index], found.gets[index]
            begin, end = _spans(get, found.before_us + found.length_us)
            lane = lanes.place(begin, end)
            args = {
                "pack": start.packs[get.pack] if get.pack >= 0 else "",
                "start": get.start,
                "end": get.end,
                "content": get.content,
                "outcome": outcome(start, index),
                "attempts": get.attempts,
                "readers": use.readers,
                "wait_us": use.wait_us,
            }
            lanes.slice(lane, begin, end, f"{title} {(get.end - get.start) / 1e6:.2f} MB", "get", args)
            edges = [begin]
            for moment in (get.sent, get.first, get.arrived, get.decoded):
                edges.append(min(end, max(edges[-1], end if moment == -1 else moment)))
            for name, early, late in zip(("queue", "first byte", "transfer", "decode"), edges, edges[1:], strict=False):
                if late > early:
                    lanes.slice(lane, early, late, name, "get")
            places[index] = (_GETS + kind, lane, begin, end)
        yield from lanes.events


def _processes(found: Analysis, places: dict[int, tuple[int, int, int, int]]) -> Iterator[Event]:
    start = found.start
    reads: dict[int, list[int]] = {}
    for index, read in enumerate(start.reads):
        reads.setdefault(read.process, []).append(index)
    opens: dict[int, list[Event]] = {}
    for opened in start.opens:
        group = _PROCESSES + opened.process + 1
        name = f"open {file_name(found, opened.file)}"
        opens.setdefault(opened.process, []).append(
            {
                "ph": "i",
                "s": "t",
                "name": name,
                "cat": "open",
                "pid": group,
                "tid": 0,
                "ts": opened.at,
                "args": {"native": bool(opened.native)},
            }
        )
    for process in sorted({*reads, *opens}):
        group = _PROCESSES + process + 1
        lanes = _Lanes(group, _title(found, process), 10 + process)
        for index in sorted(reads.get(process, ()), key=lambda index: start.reads[index].at):
            read = start.reads[index]
            begin, end = read.at, read.at + max(1, read.wait)
            lane = lanes.place(begin, end)
            args = {"tier": TIERS[read.tier], "start": read.start, "end": read.end, "get": read.get}
            lanes.slice(lane, begin, end, file_name(found, read.file), TIERS[read.tier], args)
            if read.get in places and places[read.get][2] <= end:
                lanes.events += _arrow(index, places[read.get], (group, lane, begin, end))
        yield from lanes.events
        if mine := opens.get(process):
            yield {"ph": "M", "name": "thread_name", "pid": group, "tid": 0, "ts": 0, "args": {"name": "opens"}}
            yield from mine


def _arrow(index: int, source: tuple[int, int, int, int], target: tuple[int, int, int, int]) -> list[Event]:
    """Return an arrow from one slice to another. Each end binds to the slice that encloses its time."""
    leaves = max(source[2], min(source[3], target[3]) - 1)
    common: Event = {"name": "waits", "cat": "wait", "id": index}
    return [
        {**common, "ph": "s", "pid": source[0], "tid": source[1], "ts": leaves},
        {**common, "ph": "f", "bp": "e", "pid": target[0], "tid": target[1], "ts": max(target[2], target[3] - 1, leaves)},
    ]


def _counters(found: Analysis) -> Iterator[Event]:
    """Yield how many GETs are in flight and at the gate, and the bytes that have come, at each change."""
    gets = [get for get in found.start.gets if get.sent != -1]
    yield {"ph": "M", "name": "process_name", "pid": _COUNTERS, "tid": 0, "ts": 0, "args": {"name": "link"}}
    changes: list[tuple[int, int, int, int]] = []
    for get in gets:
        end = found.before_us + found.length_us if get.arrived == -1 else get.arrived
        sent = max(get.queued, get.sent)
        changes += [
            (get.queued, 1, 0, 0),
            (sent, -1, 1, 0),
            (max(end, sent), 0, -1, 0 if get.arrived == -1 else get.end - get.start),
        ]
    waiting = flying = moved = 0
    for at, more_waiting, more_flying, more_moved in _summed(changes):
        waiting, flying, moved = waiting + more_waiting, flying + more_flying, moved + more_moved
        yield {"ph": "C", "name": "GETs", "pid": _COUNTERS, "tid": 0, "ts": at, "args": {"in flight": flying, "at the gate": waiting}}
        yield {"ph": "C", "name": "MB fetched", "pid": _COUNTERS, "tid": 0, "ts": at, "args": {"MB": moved / 1e6}}


def _summed(changes: Iterable[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Yield changes in order, those of one moment as one."""
    by_time: dict[int, list[int]] = {}
    for at, *more in changes:
        row = by_time.setdefault(at, [0, 0, 0])
        for place, value in enumerate(more):
            row[place] += value
    for at in sorted(by_time):
        one, two, three = by_time[at]
        yield at, one, two, three


def _title(found: Analysis, process: int) -> str:
    if process < 0:
        return "not known"
    who = found.start.processes[process]
    return f"{who.command or 'process'} ({who.pid})"
