"""What samples come to: medians, the floor under every start, ratios, and which bounds hold. Pure: nothing here measures or writes.

Definitions, which the page repeats:

* *bytes needed*: the fewest bytes with which any system that loads from elsewhere started the program in this run. That so few are
  enough is shown by that system; whether fewer would do is not known, so the floor is never lower than what was seen.
* *floor*: the larger of the cold start on ext4 and of the time that the link takes for the bytes needed. Nothing that has to bring the
  bytes over the link and run the program can be faster than a little below it, and only if it does both at once.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness import Figure
from bench.starts.measure import Sample, median
from bench.starts.place import Link

PROFILE, OPTIMIZED, NONE, STRANGER = (f"imagefs-kernel-{name}" for name in ("profile", "optimized", "none", "stranger"))
PULL, NATIVE = "pull", "native"

AS_FAST = 1.05
"""What "not slower" means where two medians are compared: two medians of the same differ by so much on a machine that others use too."""

_TORCH = {"20ms,200MB/s": (1.20, 1.10), "100ms,1GB/s": (1.50, 1.25)}


@dataclass(frozen=True, slots=True)
class About:
    """What is told of a system: ``skipped`` is why it did not run."""

    name: str
    title: str
    kind: str
    settings: str
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One system's starts of one workload over one link. Seconds are medians; None where no start succeeded, and ``error`` says why."""

    cold: float | None
    warm: float | None
    bytes: float
    requests: float
    mounted: float
    runs: int
    error: str = ""


class Results:
    """All samples of a run, or of several: of the same workload, link and system, those of the later document count."""

    def __init__(self, documents: Iterable[dict[str, Any]]) -> None:
        """Read documents as :mod:`bench.starts` keeps them, the oldest first."""
        self.systems: dict[str, About] = {}
        self.titles: dict[str, str] = {}
        self.machines: list[dict[str, str]] = []
        self.versions: dict[str, str] = {}
        self.times: list[str] = []
        found: dict[tuple[str, str, str], list[Sample]] = {}
        for document in documents:
            self.times.append(document["time"])
            if document["machine"] not in self.machines:
                self.machines.append(document["machine"])
            self.versions |= document["versions"]
            self.titles |= document["workloads"]
            for about in document["systems"]:
                self.systems[about["name"]] = About(**about)
            newer: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
            for sample in document["samples"]:
                newer[sample["workload"], sample["link"], sample["system"]].append(Sample(**sample))
            found |= newer
        self._samples = found
        # Documents may each have a part of the systems: the tables' order is that of their kinds.
        order = ("native", "ours", "pull", "peer")
        self.systems = dict(sorted(self.systems.items(), key=lambda item: order.index(item[1].kind)))

    def links(self) -> list[str]:
        """Give the links, in the order in which they were measured."""
        return list(dict.fromkeys(link for _, link, _ in self._samples))

    def workloads(self, link: str) -> list[str]:
        """Give the workloads that were measured over ``link``, in the order of their titles' list."""
        there = {workload for workload, one, _ in self._samples if one == link}
        return [name for name in self.titles if name in there]

    def cell(self, workload: str, link: str, system: str) -> Cell | None:
        """Give what a system did; None if it was not there."""
        samples = self._samples.get((workload, link, system))
        if not samples:
            return None
        cold = [sample for sample in samples if not sample.warm]
        warm = [sample for sample in samples if sample.warm]
        error = next((sample.error for sample in samples if sample.error), "")
        moved, requests, mounted = (median(cold, name) or 0.0 for name in ("bytes", "requests", "mounted"))
        return Cell(median(cold), median(warm), moved, requests, mounted, len(cold), error)

    def needed(self, workload: str, link: str) -> float:
        """Give the bytes needed."""
        cells = (self.cell(workload, link, about.name) for about in self.systems.values() if about.kind not in {"native", "pull"})
        return min((cell.bytes for cell in cells if cell and cell.cold is not None and cell.bytes), default=0.0)

    def floor(self, workload: str, link: str) -> float | None:
        """Give the floor in seconds; None without a start on ext4."""
        native = self.cell(workload, link, NATIVE)
        if native is None or native.cold is None:
            return None
        return max(native.cold, self.needed(workload, link) / Link.parse(link).bandwidth)

    def paired(self, workload: str, link: str, over: str, under: str) -> float | None:
        """Give the median over the rounds of one system's cold start divided by another's; None if no round has both."""

        def by_round(system: str) -> dict[int, float]:
            samples = self._samples.get((workload, link, system), [])
            return {sample.round: sample.seconds for sample in samples if not sample.warm and not sample.error}

        above, below = by_round(over), by_round(under)
        ratios = [above[number] / below[number] for number in above if number in below]
        return statistics.median(ratios) if ratios else None

    def told(self, workload: str, link: str, system: str) -> list[dict[str, Any]]:
        """Give what the system told of its cold starts."""
        samples = self._samples.get((workload, link, system), [])
        return [sample.figures for sample in samples if not sample.warm and not sample.error and sample.figures]


def bounds(results: Results) -> list[Figure]:
    """Give every figure that has to reach something, of what was measured."""
    found: list[Figure] = []
    for link in results.links():
        for workload in results.workloads(link):
            found += _of_torch(results, link) if workload == "torch" else []
            found += _of_any(results, workload, link)
    return found


def _of_torch(results: Results, link: str) -> list[Figure]:
    floor = results.floor("torch", link)
    found = []
    if floor and link in _TORCH:
        for system, bound in zip((PROFILE, OPTIMIZED), _TORCH[link], strict=True):
            cell = results.cell("torch", link, system)
            if cell and cell.cold:
                found.append(Figure(f"torch, {link}: {system} / floor", cell.cold / floor, "x", bound))
    found += [
        Figure(f"torch, {link}: {about.name} / {PROFILE}", ratio, "x", 3.0, at_most=False)
        for about in results.systems.values()
        if about.kind == "peer" and (ratio := _times(results, "torch", link, about.name, PROFILE))
    ]
    return found


def _of_any(results: Results, workload: str, link: str) -> list[Figure]:
    found = []
    if ratio := _times(results, workload, link, PULL, PROFILE):
        found.append(Figure(f"{workload}, {link}: {PULL} / {PROFILE}", ratio, "x", 4.0, at_most=False))
    found += [
        Figure(f"{workload}, {link}: {system} / {NONE}", ratio, "x", AS_FAST)
        for system in (PROFILE, OPTIMIZED, STRANGER)
        if (ratio := results.paired(workload, link, system, NONE))
    ]
    told = results.told(workload, link, PROFILE)
    used = [one["prefetch_used_bytes"] / one["prefetch_bytes"] for one in told if one.get("prefetch_bytes")]
    if used:
        found.append(Figure(f"{workload}, {link}: prefetched bytes that were read", statistics.median(used), "", 0.95, at_most=False))
        shares = [1 - one["bytes_read"].get("store", 0) / max(sum(one["bytes_read"].values()), 1) for one in told if "bytes_read" in one]
        name = f"{workload}, {link}: bytes read that were there"
        found.append(Figure(name, statistics.median(shares), "", 0.98, at_most=False, note="prefetched, or there before"))
    return found


def _times(results: Results, workload: str, link: str, over: str, under: str) -> float | None:
    """Give how many times as long one system takes as another, by medians: what was too slow for several rounds has one."""
    first, second = results.cell(workload, link, over), results.cell(workload, link, under)
    return first.cold / second.cold if first and second and first.cold and second.cold else None


@dataclass(frozen=True, slots=True)
class Win:
    """A peer that did better than ImageFS did in its best mode and variant: ``what`` is ``cold`` or ``warm`` (seconds), or ``bytes``."""

    workload: str
    link: str
    what: str
    peer: str
    theirs: float
    ours: float
    best: str


def wins(results: Results) -> list[Win]:
    """Find everything in which a peer (or pull and unpack) was better than ImageFS' best."""
    found: list[Win] = []
    for link in results.links():
        for workload in results.workloads(link):
            for what in ("cold", "warm", "bytes"):
                found += _wins_of(results, workload, link, what)
    return found


def _wins_of(results: Results, workload: str, link: str, what: str) -> Sequence[Win]:
    values: dict[str, float] = {}
    for about in results.systems.values():
        cell = results.cell(workload, link, about.name)
        value = getattr(cell, what) if cell and cell.cold is not None else None
        if value is not None and about.kind != "native":
            values[about.name] = value
    mine = [name for name in values if results.systems[name].kind == "ours"]
    if not mine:
        return []
    best = min(mine, key=lambda name: values[name])
    return [
        Win(workload, link, what, name, values[name], values[best], best)
        for name in values
        if results.systems[name].kind != "ours" and values[name] < values[best]
    ]
