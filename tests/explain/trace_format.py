"""A reader of the Trace Event Format that accepts nothing that Perfetto would drop or misread.

The format is described in "Trace Event Format" (Google, 2016); how Perfetto imports it, in its documentation's page on other formats:
slices of one track have to nest, an arrow's ends bind to the slices that enclose them, and metadata name tracks. What is checked is what
its importer counts as errors.
"""

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

_NEEDED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "M": {"name", "pid", "tid", "ts", "args"},
    "i": {"name", "cat", "pid", "tid", "ts", "s", "args"},
    "C": {"name", "pid", "tid", "ts", "args"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}
_OPTIONAL = {"X": {"args"}}


@dataclass(frozen=True)
class Slice:
    """A slice with how deep it is nested."""

    name: str
    category: str
    group: int
    track: int
    begin: int
    end: int
    depth: int
    args: dict[str, Any]


class Trace:
    """A trace that is sound."""

    def __init__(self, data: bytes) -> None:
        """Read one; AssertionError where it is not sound."""
        document = json.loads(data)
        assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
        assert document["displayTimeUnit"] in {"ms", "ns"}
        assert all(isinstance(value, str) for value in document["otherData"].values())
        self.events: list[dict[str, Any]] = document["traceEvents"]
        for event in self.events:
            need = {"ph"} | _NEEDED[event["ph"]]
            assert need <= set(event) <= need | _OPTIONAL.get(event["ph"], set()), event
            assert all(isinstance(event[key], int) for key in ("pid", "tid", "ts") if key in event), event
        self.groups: dict[int, str] = {}
        self.tracks: dict[tuple[int, int], str] = {}
        for event in self._all("M"):
            if event["name"] == "process_name":
                assert event["pid"] not in self.groups, "a group has two names"
                self.groups[event["pid"]] = event["args"]["name"]
            elif event["name"] == "thread_name":
                self.tracks[event["pid"], event["tid"]] = event["args"]["name"]
            else:
                assert event["name"] == "process_sort_index"
                assert isinstance(event["args"]["sort_index"], int)
        assert {event["pid"] for event in self.events} == set(self.groups)
        self.slices = self._nested()
        self.arrows = self._bound()
        for event in self._all("C"):
            assert all(isinstance(value, int | float) and value >= 0 for value in event["args"].values()), event

    def _all(self, phase: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["ph"] == phase]

    def _nested(self) -> list[Slice]:
        """Return all slices; each lies within the one that was open when it began, or after it."""
        tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
        for event in self._all("X"):
            assert event["dur"] >= 0
            assert event["name"]
            tracks[event["pid"], event["tid"]].append(event)
        found = []
        for (group, track), events in tracks.items():
            events.sort(key=lambda event: event["ts"])  # stable, as the importer's
            stack: list[int] = []
            for event in events:
                begin, end = event["ts"], event["ts"] + event["dur"]
                while stack and stack[-1] <= begin:
                    stack.pop()
                assert not stack or end <= stack[-1], f"slices of track {group}/{track} overlap at {begin}"
                stack.append(end)
                found.append(Slice(event["name"], event["cat"], group, track, begin, end, len(stack) - 1, event.get("args", {})))
        return found

    def _bound(self) -> list[tuple[Slice, Slice]]:
        """Return where arrows lead from and to: each has one beginning, one end that is no earlier, and both lie in slices."""
        ids = Counter((event["ph"], event["id"]) for event in self.events if event["ph"] in "sf")
        assert all(count == 1 for count in ids.values())
        tracks: dict[tuple[int, int], list[Slice]] = defaultdict(list)
        for one in self.slices:
            if one.depth == 0:
                tracks[one.group, one.track].append(one)
        ends = {event["id"]: event for event in self._all("f")}
        arrows = []
        for event in self._all("s"):
            other = ends.pop(event["id"])
            assert event["ts"] <= other["ts"]
            assert other["bp"] == "e"
            pair = []
            for part in (event, other):
                track = tracks[part["pid"], part["tid"]]
                place = bisect_right(track, part["ts"], key=lambda one: one.begin) - 1
                assert place >= 0, f"an arrow leads nowhere: {part}"
                assert part["ts"] <= track[place].end, f"an arrow leads nowhere: {part}"
                pair.append(track[place])
            arrows.append((pair[0], pair[1]))
        assert not ends
        return arrows
