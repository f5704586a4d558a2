"""What a Start document tells: who waited how long for what, and what the start's length consists of. Pure.

Times are in microseconds, bytes are of content unless they are said to be ``stored``. ``wait_us`` adds up waits, of which several may have
gone on at once; ``path_us`` is the part of them on the critical path, and those add up, with the program's own time, to ``length_us``.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from imagefs.format.start import DEMAND, KINDS, PROFILE, TIERS, Start
from imagefs_cli.explain import chain, usage, waits
from imagefs_cli.explain.verdict import Facts, Known, Verdict, verdict
from imagefs_cli.explain.waits import HELP, NOTHING, Parts, plus

STEPS: Final = 20
"""Waits of the critical path that are named: the longest."""


@dataclass(slots=True)
class Sum:
    """Reads that were added up. ``parts`` is ``wait_us`` by kind."""

    reads: int = 0
    bytes: int = 0
    wait_us: int = 0
    path_us: int = 0
    parts: Parts = NOTHING

    def add(self, size: int, parts: Parts, path: int) -> None:
        """Add a read."""
        self.reads += 1
        self.bytes += size
        self.wait_us += sum(parts)
        self.path_us += path
        self.parts = plus(self.parts, parts)

    def merge(self, other: "Sum") -> None:
        """Add what another one has."""
        self.reads += other.reads
        self.bytes += other.bytes
        self.wait_us += other.wait_us
        self.path_us += other.path_us
        self.parts = plus(self.parts, other.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it for people's programs."""
        return {
            "reads": self.reads,
            "bytes": self.bytes,
            "wait_us": self.wait_us,
            "path_us": self.path_us,
            "waits": dict(zip(waits.KINDS, self.parts, strict=True)),
        }


@dataclass(slots=True)
class FileUse:
    """What became of one file. ``opens`` and ``native`` count opens; ``process`` and ``first_us`` are of its first use."""

    index: int
    touched: int
    sum: Sum = field(default_factory=Sum)
    opens: int = 0
    native: int = 0
    process: int = -1
    first_us: int = -1
    tiers: Counter[int] = field(default_factory=Counter)
    help: Counter[int] = field(default_factory=Counter)

    def seen(self, at: int, process: int) -> None:
        """Take in a use."""
        if self.first_us < 0 or at < self.first_us:
            self.first_us, self.process = max(0, at), process


@dataclass(slots=True)
class GetUse:
    """What readers made of one GET."""

    readers: int = 0
    wait_us: int = 0
    path_us: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A wait on the critical path."""

    at_us: int
    length_us: int
    read: int
    parts: Parts


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that is known of a start. Lists of sums are by index, as the document's.

    ``length_us`` is from the first access to the last; ``before_us`` from the mount to the first.
    """

    start: Start
    before_us: int
    length_us: int
    program_us: int
    path: Parts
    steps: list[Step]
    total: Sum
    tiers: list[Sum]
    help: list[Sum]
    processes: list[Sum]
    files: list[FileUse]
    gets: list[GetUse]
    directories: dict[str, Sum]
    bytes: usage.Bytes
    link: usage.Link
    verdict: Verdict

    @property
    def native_opens(self) -> int:
        """Count the opens after which the kernel read by itself."""
        return sum(use.native for use in self.files)


def analyse(start: Start, known: Known | None = None) -> Analysis:
    """Return what a start tells. ``known`` is what is known besides, of profiles and other starts."""
    path = chain.critical_path(start)
    on_path = [0] * len(start.reads)
    path_parts, steps = NOTHING, []
    for segment in path:
        if segment.read >= 0:
            parts = waits.split(start, start.reads[segment.read], segment.begin, segment.end)
            on_path[segment.read] += segment.end - segment.begin
            path_parts = plus(path_parts, parts)
            steps.append(Step(segment.begin, segment.end - segment.begin, segment.read, parts))
    used = usage.touched(start)
    sums = _Sums(start, used)
    sums.add(on_path)
    before = chain.begun(start)
    ended = chain.ended(start)
    length = ended - before
    answered = max((step.at_us + step.length_us for step in steps), default=ended)
    bytes_ = usage.moved(start, used)
    link = usage.link(start, answered)
    facts = Facts(
        start=start,
        length_us=length,
        path=dict(zip(waits.KINDS, path_parts, strict=True)),
        help_us={name: total.path_us for name, total in zip(HELP, sums.help, strict=True)},
        store_steps=sum(start.reads[step.read].tier == len(TIERS) - 1 for step in steps),
        bytes=bytes_,
        link=link,
        decode_cpu_us=sum(get.decode_cpu + get.verify_cpu for get in start.gets),
        late_gets=sum(get.kind == PROFILE and get.promoted != -1 for get in start.gets),
        gets_by_kind=Counter(KINDS[get.kind] for get in start.gets),
        known=known or Known(),
    )
    return Analysis(
        start=start,
        before_us=before,
        length_us=length,
        program_us=length - sum(path_parts),
        path=path_parts,
        steps=steps,
        total=sums.total,
        tiers=sums.tiers,
        help=sums.help,
        processes=sums.processes,
        files=sums.files,
        gets=sums.gets,
        directories=_directories(start, sums.files),
        bytes=bytes_,
        link=link,
        verdict=verdict(facts),
    )


class _Sums:
    """Adds the reads of a start up, in each way that is asked for."""

    def __init__(self, start: Start, used: list[int]) -> None:
        self._start = start
        self.total = Sum()
        self.tiers = [Sum() for _ in TIERS]
        self.help = [Sum() for _ in HELP]
        self.processes = [Sum() for _ in range(len(start.processes) + 1)]  # the last one: nobody's
        self.files = [FileUse(number, used[number]) for number in range(len(start.files))]
        self.gets = [GetUse() for _ in start.gets]
        self._alike: dict[tuple[int, int, int], Sum] = {}
        for opened in start.opens:
            use = self.files[opened.file]
            use.opens += 1
            use.native += opened.native
            use.seen(opened.at, opened.process)

    def add(self, on_path: list[int]) -> None:
        """Add all reads. ``on_path``: how much of each is on the critical path."""
        start = self._start
        streamed = any(get.kind == PROFILE for get in start.gets)
        for read, path in zip(start.reads, on_path, strict=True):
            parts = waits.split(start, read, read.at, read.at + read.wait)
            size, use = read.end - read.start, self.files[read.file]
            help_ = waits.helped(start, read, streamed=streamed)
            alike = self._alike.get((read.tier, help_, read.process))
            if alike is None:
                alike = self._alike[read.tier, help_, read.process] = Sum()
            alike.add(size, parts, path)
            use.sum.add(size, parts, path)
            use.seen(read.at, read.process)
            use.tiers[read.tier] += 1
            use.help[help_] += 1
            if read.get >= 0:
                get = self.gets[read.get]
                get.readers += 1
                get.wait_us += read.wait
                get.path_us += path
        for (tier, help_, process), alike in self._alike.items():
            for total in (self.total, self.tiers[tier], self.help[help_], self.processes[process]):
                total.merge(alike)


def _directories(start: Start, files: list[FileUse]) -> dict[str, Sum]:
    """Return the sums of each directory, with all that is below it."""
    own: dict[str, Sum] = {}
    for use in files:
        path = start.files[use.index].path
        if path:
            own.setdefault(path.rpartition("/")[0] or "/", Sum()).merge(use.sum)
    sums: dict[str, Sum] = {}
    for folder, total in own.items():
        here = folder
        while True:
            sums.setdefault(here, Sum()).merge(total)
            if here in {"/", ""}:
                break
            here = here.rpartition("/")[0] or ("/" if here.startswith("/") else "")
    return sums


def outcome(start: Start, index: int) -> str:
    """Say in a word what came of a GET: a reader asked for it (``asked``), came to wait for it (``late``), or none waited (``ahead``)."""
    get = start.gets[index]
    if get.arrived == -1:
        return "under way"
    return "asked" if get.kind == DEMAND else "late" if get.promoted != -1 else "ahead"
