"""Adding up accesses: what many starts touch, how much of one another has, and what somebody saw being touched. Pure; sums are integers.

All sums go by boundaries: each range adds its weight where it starts and takes it away where it ends. So ranges that were cut in other
places in other starts need no table of grains, and the order in which they come makes no difference.

Memory is bounded by what is given: objects are added up a shard at a time, by the first byte of their digests.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, repeat
from operator import add, mul
from typing import Final, NamedTuple

from imagefs.digest import DIGEST_SIZE
from imagefs.format.accesses import EVERY_START, GRAIN, MAX_ACCESSES, MAX_AT, Access, Accesses

MIN_SHARE: Final = 4096
"""Of ``EVERY_START``: what a smaller share of the starts touched is forgotten. A sixteenth."""

# A sum holds two numbers: weights times shares above, and the same times the moments below. 64 starts of a weight below 2^32 cannot spill.
_ABOVE: Final = 96
_ONE: Final = 1 << _ABOVE
_BELOW: Final = _ONE - 1
_LENGTH: Final = (1 << 32) - 1
_SHARD: Final = 65536
_MAX_GRAIN: Final = (1 << 32) - 1


class Touch(NamedTuple):
    """Bytes ``start`` to ``end`` (exclusive) of an object, at any place, were seen to be touched ``at`` milliseconds after the mount."""

    object: bytes
    start: int
    end: int
    at: int


def weighted(parts: Sequence[tuple[int, Accesses]]) -> Accesses:
    """Return what ``parts``, each with its weight (1 to 2^32), touch: with its share of all weights, and when on average.

    What has less than ``MIN_SHARE`` is left out, and of more than ``MAX_ACCESSES`` those with the smallest share, of these the latest.
    """
    weights = sum(weight for weight, _ in parts)
    found: list[Access] = []
    for shard in _shards(parts):
        found += _added(shard, weights)
    if len(found) > MAX_ACCESSES:
        found.sort(key=lambda access: (-access.share, access.at, access.object, access.start))
        del found[MAX_ACCESSES:]
    return Accesses.of(found)


class _Slice(NamedTuple):
    """Some objects of a part, and the columns of their ranges."""

    weight: int
    names: list[bytes]
    counts: "array[int]"
    starts: "array[int]"
    lengths: "array[int]"
    ats: "array[int]"
    shares: "array[int]"


def _shards(parts: Sequence[tuple[int, Accesses]]) -> Iterator[list[_Slice]]:
    """Cut the parts at the same digests, a shard having about ``_SHARD`` accesses: digests are spread evenly, those of an attack apart."""
    total = sum(len(part) for _, part in parts)
    step = 256 >> min(8, (total // _SHARD).bit_length())
    # For each part: how many of its objects and of its ranges have been dealt with.
    done = [(0, 0)] * len(parts)
    for bound in range(step, 257, step):
        shard = []
        for number, (weight, part) in enumerate(parts):
            first_object, first = done[number]
            last_object = _objects_below(part, bound)
            if last_object == first_object:
                continue
            counts = part.counts[first_object:last_object]
            last = first + sum(counts)
            done[number] = last_object, last
            table = part.table
            names = [table[at : at + DIGEST_SIZE] for at in range(first_object * DIGEST_SIZE, last_object * DIGEST_SIZE, DIGEST_SIZE)]
            columns = (column[first:last] for column in (part.starts, part.lengths, part.ats, part.shares))
            shard.append(_Slice(weight, names, counts, *columns))
        yield shard


def _objects_below(part: Accesses, bound: int) -> int:
    """Count the objects whose digests begin with a smaller byte than ``bound``."""
    return bisect_left(range(part.object_count), bound, key=lambda index: part.table[index * DIGEST_SIZE])


def _added(shard: list[_Slice], weights: int) -> Iterator[Access]:
    """Add up the ranges of a shard; yield them by object and start, maximal where neighbours are alike."""
    sums: dict[int, int] = {}
    # What too few starts touch at all is not added up: where hosts have little in common, that is nearly everything.
    touching: dict[bytes, int] = {}
    for part in shard:
        for name in part.names:
            touching[name] = touching.get(name, 0) + part.weight
    names = sorted(name for name, weight in touching.items() if (weight * EVERY_START + weights // 2) // weights >= MIN_SHARE)
    numbers = {name: number << 64 for number, name in enumerate(names)}
    for weight, own, counts, starts, lengths, ats, shares in shard:
        # A range's key: which object, where it starts, how long it is. The same range of another start has the same.
        bases = chain.from_iterable(map(repeat, map(numbers.get, own, repeat(0)), counts))
        keys = map(add, map(add, bases, map(mul, starts, repeat(1 << 32))), lengths)
        rows: Iterable[tuple[int, int, int]] = zip(keys, ats, shares, strict=True)
        if len(names) < len(touching):
            rows = compress(rows, chain.from_iterable(map(repeat, map(numbers.__contains__, own), counts)))
        for key, at, share in rows:
            sums[key] = sums.get(key, 0) + weight * share * (_ONE + at)
    changes: dict[int, int] = {}
    while sums:
        key, value = sums.popitem()
        start = key >> 32
        end = start + (key & _LENGTH)
        changes[start] = changes.get(start, 0) + value
        changes[end] = changes.get(end, 0) - value
    places = sorted(place for place, change in changes.items() if change)
    held: Access | None = None
    for place, following, value in zip(places, places[1:], accumulate(map(changes.__getitem__, places)), strict=False):
        touched = value >> _ABOVE
        share = (touched + weights // 2) // weights
        if share < MIN_SHARE:
            continue
        name = names[place >> 32]
        start, end = (place & _LENGTH) * GRAIN, (following & _LENGTH) * GRAIN
        at = ((value & _BELOW) + touched // 2) // touched
        if held is not None:
            if held.object == name and held.end == start and held.at == at and held.share == share:
                held = held._replace(end=end)
                continue
            yield held
        held = Access(name, start, end, at, share)
    if held is not None:
        yield held


def covered(part: Accesses, whole: Accesses) -> float:
    """Return which share of ``part`` (0 to 1) ``whole`` has too.

    Each access counts the same, whatever its bytes: a small file costs a round trip like a large one.
    """
    if not len(part):
        return 1.0
    places: dict[bytes, tuple[int, int]] = {}
    first = 0
    for name, count in zip(whole.names(), whole.counts, strict=True):
        places[name] = first, first + count
        first += count
    ends = list(map(add, whole.starts, whole.lengths))
    total = 0.0
    index = 0
    for name, count in zip(part.names(), part.counts, strict=True):
        low, high = places.get(name, (0, 0))
        for number in range(index, index + count):
            start = part.starts[number]
            end = start + part.lengths[number]
            there = 0
            at = bisect_right(ends, start, low, high)
            while at < high and whole.starts[at] < end:
                there += min(end, ends[at]) - max(start, whole.starts[at])
                at += 1
            total += there / (end - start)
        index += count
    return total / len(part)


def first_touches(touches: Iterable[Touch]) -> Accesses:
    """Return what was touched, in whole grains, each with the first time that it was. Of more than ``MAX_ACCESSES`` the first ones.

    A touch may be empty (then it is none), overlap others, come in any order, or have a time or a place that cannot be (then the nearest).
    """
    pieces: dict[bytes, list[tuple[int, int, int]]] = {}
    for name, start, end, at in touches:
        first, last = max(start, 0) // GRAIN, min(-(-end // GRAIN), _MAX_GRAIN)
        if start < end and first < last and len(name) == DIGEST_SIZE:
            pieces.setdefault(name, []).append((min(max(at, 0), MAX_AT), first, last))
    found: list[Access] = []
    for name, ranges in pieces.items():
        found += (Access(name, start * GRAIN, end * GRAIN, at, EVERY_START) for start, end, at in _first(ranges))
    if len(found) > MAX_ACCESSES:
        found.sort(key=lambda access: (access.at, access.object, access.start))
        del found[MAX_ACCESSES:]
    return Accesses.of(found)


def _first(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Take (when, start, end); return (start, end, when) ascending without overlaps, the earliest one everywhere."""
    ranges.sort()
    # What is touched so far: where each run starts and ends. Touching runs are one.
    starts: list[int] = []
    ends: list[int] = []
    found: list[tuple[int, int, int]] = []
    for at, start, end in ranges:
        low = bisect_left(ends, start)
        high = bisect_right(starts, end)
        position = start
        for there, until in zip(starts[low:high], ends[low:high], strict=True):
            if position < there:
                found.append((position, there, at))
            position = max(position, until)
        if position < end:
            found.append((position, end, at))
        begin = min(start, starts[low]) if low < high else start
        finish = max(end, ends[high - 1]) if low < high else end
        starts[low:high] = [begin]
        ends[low:high] = [finish]
    found.sort()
    joined: list[tuple[int, int, int]] = []
    for start, end, at in found:
        if joined and joined[-1][1] == start and joined[-1][2] == at:
            joined[-1] = (joined[-1][0], end, at)
        else:
            joined.append((start, end, at))
    return joined
