"""What a start used and what was moved for it: ranges, bytes, and how busy the link was. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from imagefs.format.start import AHEAD, ALONG, DEMAND, PROFILE, Get, Start

_SMALL: Final = 128 * 1024
"""Bytes of a GET of which next to all the time is latency."""

_LARGE: Final = 256 * 1024
"""Bytes of a GET from which on its own time says something of the bandwidth."""

Span = tuple[int, int]


def union(spans: Iterable[Span]) -> list[Span]:
    """Return ranges (end exclusive) without overlaps, in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = joined[-1][0], end
        elif begin < end:
            joined.append((begin, end))
    return joined


def length(spans: Iterable[Span]) -> int:
    """Return how much ranges cover together."""
    return sum(end - begin for begin, end in union(spans))


def touched(start: Start) -> list[int]:
    """Return how many bytes of each file were touched, by the file's index: what readers were answered counts, told or not."""
    spans: list[list[Span]] = [[] for _ in start.files]
    for item in start.touched:
        spans[item.file].append((item.start, min(item.end, start.files[item.file].size)))
    for read in start.reads:
        spans[read.file].append((read.start, min(read.end, start.files[read.file].size)))
    return [length(mine) for mine in spans]


@dataclass(frozen=True, slots=True)
class Bytes:
    """What was moved. All in bytes; those of ``stored`` are as stored, the others of content.

    ``twice`` is what was fetched again, as stored. ``touched_share`` is ``touched`` of what was fetched and touched, where each file's part
    of what was fetched is known, else the least that it can be; None where nothing was fetched.
    """

    stored: int
    content: int
    twice: int
    touched: int
    touched_of_fetched: int | None
    ahead_content: int
    by_kind: dict[str, int]


def moved(start: Start, used: list[int]) -> Bytes:
    """Return what GETs brought, and what of it was touched."""
    arrived = [get for get in start.gets if get.arrived != -1]
    packs: dict[int, list[Span]] = {}
    kinds = dict.fromkeys((DEMAND, PROFILE, ALONG, AHEAD), 0)
    for get in arrived:
        packs.setdefault(get.pack, []).append((get.start, get.end))
        kinds[get.kind] += get.end - get.start
    stored = sum(kinds.values())
    known = [min(use, file.fetched) for use, file in zip(used, start.files, strict=True) if file.fetched >= 0]
    return Bytes(
        stored=stored,
        content=sum(get.content for get in arrived),
        twice=stored - sum(length(spans) for spans in packs.values()),
        touched=sum(used),
        touched_of_fetched=sum(known) if known else None,
        ahead_content=sum(get.content for get in arrived if get.kind != DEMAND),
        by_kind={name: kinds[kind] for kind, name in enumerate(("demand", "profile", "along", "ahead"))},
    )


@dataclass(frozen=True, slots=True)
class Link:
    """How the link did, up to ``until_us``: for ``busy_us`` bytes were coming, at ``bytes_per_second``. None: not known.

    ``latency_us`` is how long a first byte takes where nothing is in its way; ``retried`` counts GETs that were sent more than once.
    """

    gets: int
    retried: int
    queued_us: int
    latency_us: int | None
    busy_us: int
    until_us: int
    bytes_per_second: int | None


def link(start: Start, until: int) -> Link:
    """Return how the link did until a moment, in us since the mount."""
    arrived = [get for get in start.gets if get.arrived != -1 and get.sent != -1]
    latency = _latency(arrived)
    spans, stored = [], 0.0
    # How fast bytes come is told by those of which the first was noted; else by what is large, taken to have waited for its first likewise.
    telling = [get for get in arrived if get.sent <= get.first < get.arrived] or [get for get in arrived if get.end - get.start >= _LARGE]
    for get in telling:
        begin = get.first if get.sent <= get.first < get.arrived else min(get.arrived, get.sent + (latency or 0))
        if begin < until and get.arrived > 0:
            share = (min(get.arrived, until) - begin) / (get.arrived - begin) if get.arrived > begin else 1.0
            stored += share * (get.end - get.start)
            spans.append((max(0, begin), max(0, min(get.arrived, until))))
    busy = length(spans)
    return Link(
        gets=len(start.gets),
        retried=sum(get.attempts > 1 for get in start.gets),
        queued_us=sum(max(0, get.sent - get.queued) for get in start.gets if get.sent != -1),
        latency_us=latency,
        busy_us=busy,
        until_us=until,
        bytes_per_second=round(stored / busy * 1e6) if busy else None,
    )


def _latency(gets: list[Get]) -> int | None:
    """Return how long a first byte takes: a tenth of those told were faster, and of small GETs; of large ones alone, their least."""
    once = [get for get in gets if get.attempts <= 1 and get.arrived >= get.sent]
    told = [get.first - get.sent for get in once if get.sent <= get.first < get.arrived]
    told += [get.arrived - get.sent for get in once if get.end - get.start <= _SMALL and get.first == get.arrived]
    if told:
        return sorted(told)[len(told) // 10]
    return min((get.arrived - get.sent for get in once), default=None)
