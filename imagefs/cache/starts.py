"""What happens after a mount, while a program starts: opens, reads and GETs, as they come. Profiles and ``imagefs explain`` are made of it.

Each mount has a :class:`Start` of its own until nothing new is accessed. :class:`Starts` has those that are running, and says of an object
whose record is made which of them want to hear of its reads: so an image without one costs its readers the look at an empty tuple.

Invariants: all is bounded, whatever the program does: what is more than a bound is counted as lost, and nothing of what is there changes;
what counts as touched is only ever what a reader was answered, or what :meth:`Start.touch` was told; times never come before the mount.

An event is a few numbers in an array, 64 bytes a read; text and paths are found for those that are in the end written down. All of it
belongs to the trio thread. What does not live here: when a Start begins and ends, who the processes are and what the paths (``daemon``),
and what a profile makes of it (``start_profile``).
"""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from imagefs.cache.gets import NEVER, Get, Kind
from imagefs.cache.start_parts import EVENTS_MAX, Columns, Facts, File, Process
from imagefs.cache.touched import Range, Touched
from imagefs.format.objectmap import ObjectMap

__all__ = ["EVENTS_MAX", "Facts", "File", "Get", "Kind", "Process", "Range", "Start", "Starts", "tell"]

WHO_MAX: Final = 4096
"""Threads of one Start. What is more is nobody's (-1)."""

QUIET_SECONDS: Final = 5.0
"""A Start is over when for so long nothing new was accessed."""

LIMIT_SECONDS: Final = 120.0
"""A Start is over after so long, whatever happens."""

TREE: Final = 0
RAM: Final = 1
SSD: Final = 2
STORE: Final = 3
"""The tiers of reads."""


class Start:
    """What happens on one mount. See the module.

    ``files`` are in the order of their first access; ``unseen`` those of them of which not all accesses can have been seen here, by when
    they were first opened (us): the kernel has had their content, or had some of it before the mount. ``late``: that may be so of all of
    them, as the image was shown before.
    """

    def __init__(self, facts: Facts, objects: ObjectMap | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """It begins now. ``objects`` is the image's object map."""
        self.facts = facts
        self.manifest = facts.manifest
        self.objects = objects
        self.began = time.time()
        self.profiled: Mapping[bytes, int] = {}
        """In what share of starts (1 to 65,535) objects are touched, as the profile that is prefetched from says."""
        self.stats: dict[str, Any] = {}
        self.files: list[File] = []
        self.late = False
        self.noticed: Callable[[], None] | None = None
        """Called when a thread is seen for the first time, and when it is known to be the first."""
        self.identified: Callable[[Start], None] | None = None
        """Called when it was looked who accessed first."""
        self.opened_here: Callable[[bytes], None] | None = None
        """Called with each object that is opened for the first time and whose content is not the daemon's to give."""
        self.entry_known = False
        """Whether the process that accessed first is known, past the ``exec`` that usually follows: then ``facts.entry`` stays as it is."""
        self.unseen: dict[int, int] = {}
        self.touched = Touched()
        self.threads: list[int] = []
        """Threads, or processes, that accessed something, in that order."""
        self.processes: dict[int, Process] = {}
        """What they are, by thread, as far as that was found out."""
        self._clock = clock
        self._zero = self._news = clock()
        self._length: float | None = None
        self._index: dict[bytes | int, int] = {}
        self._who: dict[int, int] = {}
        self._asked: dict[int, tuple[int, bool, int]] = {}
        self._open_before: set[int] = set()
        self._opens = Columns(4)
        self._reads = Columns(8)
        self._gets: list[Get] = []
        self._get_index: dict[Get, int] = {}
        self._lost_gets = 0
        self._first: int | None = None

    # -- what happens ---------------------------------------------------------------------------------------------------------------

    def file(self, key: bytes | int, size: int, nid: int = -1) -> int:
        """Return the index of a file; -1 if there are too many."""
        index = self._index.get(key, -1)
        if index >= 0:
            if nid >= 0 > self.files[index].nid:
                self.files[index] = File(key, size, nid)
        elif len(self.files) < EVENTS_MAX:
            index = self._index[key] = len(self.files)
            self.files.append(File(key, size, nid))
            self._news = self._clock()
        return index

    def opened(self, file: int, thread: int, *, native: bool, unseen: bool = False, at: float | None = None) -> None:
        """Note an open of a file, by a process or thread; ``native``: its content is not the daemon's to give.

        ``unseen``: not all reads of it come here. ``at`` is on the clock: now, unless told.
        """
        if file < 0:
            self._opens.lost += 1
            return
        when = self._since(self._clock() if at is None else at)
        if (asked := self._asked.pop(file, None)) is not None:
            # The open is told of after the daemon was asked to open the object, and by who does not know when.
            native, when, unseen = False, min(when, asked[0]), asked[1]
        self._add_open(file, thread, when, native=native, unseen=unseen)

    def _add_open(self, file: int, thread: int, at: int, *, native: bool, unseen: bool) -> None:
        if native or (unseen and file not in self._open_before):
            self.unseen.setdefault(file, at)
        if file not in self._open_before:
            self._open_before.add(file)
            if native and self.opened_here is not None and isinstance(key := self.files[file].key, bytes):
                self.opened_here(key)
        self._opens.add(at, file, self.who(thread), native)

    def asked(self, file: int, thread: int, *, unseen: bool) -> None:
        """Note that the daemon was asked to open an object: who watches the mount will tell of it in a moment, if he sees it."""
        if file < 0:
            return
        if (before := self._asked.pop(file, None)) is not None:
            self._add_open(file, before[2], before[0], native=False, unseen=before[1])
        self._asked[file] = self._since(self._clock()), unseen, thread

    def lose(self, opens: int) -> None:
        """Note that some opens were not told of."""
        self._opens.lost += opens

    def read(self, file: int, span: tuple[int, int], tier: int, began: float, *, thread: int, get: Get | None = None) -> None:
        """Note an answer: bytes ``span`` (end exclusive) of a file, asked for at ``began``. ``get`` is the one that was waited for last."""
        if file < 0:
            self._reads.lost += 1
            return
        start, end = span
        at = self._since(began)
        wait = 0 if tier <= RAM and get is None else max(0, round(1e6 * (self._clock() - began)))
        self._reads.add(at, wait, file, start, end, tier, self.who(thread), -1 if get is None else self.fetching(get))
        self.touch(file, start, end, at)

    def fetching(self, get: Get) -> int:
        """Note a GET; return its index, -1 if there are too many."""
        index = self._get_index.get(get, -1)
        if index < 0:
            if len(self._gets) >= EVENTS_MAX:
                self._lost_gets += 1
                return -1
            index = self._get_index[get] = len(self._gets)
            self._gets.append(get)
        return index

    def touch(self, file: int, start: int, end: int, at: int) -> None:
        """Note that bytes of a file are touched, from ``start`` to ``end`` (exclusive), ``at`` us after the mount at the latest."""
        if self.touched.add(file, start, end, at):
            self._news = self._clock()

    def came(self, thread: int) -> None:
        """Note a thread that surely accesses something through this mount: reads may come through another one of the image's."""
        if self.who(thread) >= 0 and self._first is None:
            self._first = thread
            if self.noticed is not None:
                self.noticed()

    @property
    def is_sure(self) -> bool:
        """Whether the thread that accessed first did so through this mount, as far as can be known."""
        return self._first is not None or not self.facts.watched

    @property
    def first(self) -> int:
        """The thread that accessed first; -1 if none did."""
        if self._first is not None:
            return self._first
        return self.threads[0] if self.threads else -1

    def who(self, thread: int) -> int:
        """Return the index of a thread in ``threads``; -1 if there are too many."""
        index = self._who.get(thread, -1)
        if index < 0 and len(self.threads) < WHO_MAX:
            index = self._who[thread] = len(self.threads)
            self.threads.append(thread)
            if self.noticed is not None:
                self.noticed()
        return index

    def _since(self, moment: float) -> int:
        return max(0, round(1e6 * (moment - self._zero)))

    # -- how it stands --------------------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """How long it has been running, or ran."""
        return self._clock() - self._zero if self._length is None else self._length

    def finish(self) -> None:
        """Note that it is over now: nothing more is told to it."""
        self._length = self.seconds
        for file, (at, unseen, thread) in self._asked.items():
            self._add_open(file, thread, at, native=False, unseen=unseen)
        self._asked.clear()

    def is_over(self) -> str:
        """Say why it is over: ``quiet`` or ``limit``; nothing while it is not."""
        now = self._clock()
        if self.files and now - self._news >= QUIET_SECONDS:
            return "quiet"
        return "limit" if now - self._zero >= LIMIT_SECONDS else ""

    # -- the document ---------------------------------------------------------------------------------------------------------------

    def copy(self) -> "Start":
        """Return one that has the same, and to which nothing more happens: for the document of one that is running."""
        other = copy.copy(self)
        other.noticed = other.identified = other.opened_here = None
        other.facts = copy.deepcopy(self.facts)
        for name in ("files", "threads", "processes", "touched", "unseen", "_asked", "_open_before", "_who", "_opens", "_reads", "_gets"):
            setattr(other, name, copy.copy(getattr(self, name)))
        other.finish()
        return other

    def document(self, ended: str, paths: Mapping[int, str] | None = None) -> dict[str, Any]:
        """Return the document of this Start: ``docs/design/recording.md`` says what is in it.

        ``ended`` is why, or ``running``. ``paths`` are those of the files, by index. It takes a while where much has happened, and may be
        called in a thread, for one that is over or a copy.
        """
        facts = self.facts
        processes, index_of = self._people()
        packs: dict[str, int] = {}
        gets = [self._row(get, packs.setdefault(get.pack, len(packs))) for get in self._gets]
        return {
            "format": 1,
            "kind": "start",
            "manifest": facts.manifest,
            "ref": facts.ref,
            "mountpoint": facts.mountpoint,
            "mode": facts.mode,
            "label": facts.label,
            "entry": list(facts.entry),
            "gpu": facts.gpu,
            "began": self.began,
            "seconds": round(self.seconds, 6),
            "ended": ended,
            "watched": facts.watched,
            "lost": {"opens": self._opens.lost, "reads": self._reads.lost, "gets": self._lost_gets},
            "host": dict(facts.host),
            "image": dict(facts.image),
            "optimized": facts.optimized,
            "profile": facts.profile,
            "files": [self._file_row(number, file, paths or {}) for number, file in enumerate(self.files)],
            "processes": processes,
            "packs": list(packs),
            "opens": [[at, file, index_of[who], native] for at, file, who, native in self._opens.rows()],
            "reads": [[*row[:6], index_of[row[6]], row[7]] for row in self._reads.rows()],
            "gets": gets,
            "touched": [list(row) for row in self.touched.merged([file.size for file in self.files])],
            "stats": dict(self.stats),
        }

    def _file_row(self, number: int, file: File, paths: Mapping[int, str]) -> dict[str, object]:
        digest = file.key if isinstance(file.key, bytes) else b""
        return {"path": paths.get(number, ""), "object": digest.hex(), "size": file.size, "profiled": self.profiled.get(digest, 0)}

    def _people(self) -> tuple[list[dict[str, object]], list[int]]:
        """Return the processes, and which of them each thread belongs to; the last is that of nobody."""
        known = [self.processes.get(thread, Process(thread, "", 0)) for thread in self.threads]
        # A process that accessed nothing itself, and is the parent of one that did, is not in the list.
        latest = {process.pid: process for process in known}
        place = {pid: number for number, pid in enumerate(latest)}
        rows: list[dict[str, object]] = [
            {"pid": process.pid, "command": process.command, "parent": place.get(process.parent, -1)} for process in latest.values()
        ]
        return rows, [*(place[process.pid] for process in known), -1]

    def _row(self, get: Get, pack: int) -> list[int]:
        times = (get.queued, get.sent, get.first, get.arrived, get.decoded)
        return [
            *(-1 if moment == NEVER else self._since(moment) for moment in times),
            get.decode_ns // 1000,
            get.verify_ns // 1000,
            pack,
            get.start,
            get.end,
            get.content,
            int(get.kind),
            -1 if get.promoted == NEVER else self._since(get.promoted),
            get.attempts,
        ]


class Told(Protocol):
    """What is needed of the record of an object that is read."""

    digest: bytes
    size: int
    opener: int
    starts: tuple[Start, ...]


def tell(record: Told, span: tuple[int, int], tier: int, began: float, get: Get | None = None) -> None:
    """Have Starts hear of an answer to a reader of an object: see :meth:`Start.read`."""
    for start in record.starts:
        start.read(start.file(record.digest, record.size), span, tier, began, thread=record.opener, get=get)


class Starts:
    """The Starts that are running."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        """None is."""
        self.running: tuple[Start, ...] = ()

    def begin(self, start: Start) -> None:
        """Have a Start hear of what happens from now on."""
        self.running = (*self.running, start)

    def end(self, start: Start) -> None:
        """Have it hear of nothing more."""
        self.running = tuple(other for other in self.running if other is not start)

    def of_image(self, manifest: str) -> tuple[Start, ...]:
        """Return those of an image that is read through FUSE."""
        return tuple(start for start in self.running if start.manifest == manifest and start.facts.mode == "fuse")

    def of_object(self, digest: bytes) -> tuple[Start, ...]:
        """Return those whose image is mounted in kernel mode and has an object."""
        return tuple(
            start
            for start in self.running
            if start.facts.mode == "kernel" and start.objects is not None and start.objects.find(digest) is not None
        )

    def fetching(self, manifest: str, get: Get) -> None:
        """Note a GET for an image; a Start of another one hears of it when a reader of its own comes to wait for it."""
        for start in self.running:
            if start.manifest == manifest:
                start.fetching(get)
