"""Who reads what from which tier: always by image; by cgroup and program while somebody looks (``imagefs top``).

A read has only the handle, which is the nodeid, so it counts for who opened that file last. Of an open one number is kept, the thread's id
as the kernel tells it. What that is, ``/proc`` is asked while somebody looks: for files that are open already when that begins, and at each
open from then on. So a read costs the same whether or not anybody looks: it adds to the tally that its file's record has.

All of it belongs to the trio thread, and is bounded: the oldest opens are forgotten, and what is more than ``ROWS_MAX`` programs is one.
What the kernel reads without asking is not seen. What does not live here: which mounts an image has.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from imagefs.cache.counters import Tally
from imagefs.cache.layout import ObjectRecord

ROWS_MAX: Final = 1000
WATCH_SECONDS: Final = 15.0
"""After so long without a question nobody looks any more."""

_THREADS_MAX: Final = 16384
_KNOWN_SECONDS: Final = 1.0
_KNOWN_MAX: Final = 4096
_PROC: Final = Path("/proc")


class Program(NamedTuple):
    """Who reads: its cgroup's path and its name; both empty where that is not known, or not any more."""

    cgroup: str
    command: str


UNKNOWN: Final = Program("", "")
OTHERS: Final = Program("", "others")


@dataclass(slots=True)
class Row:
    """What a program has read of an image since somebody looks. ``pid`` is one of its processes, the last that opened something."""

    tally: Tally
    pid: int


class Readers:
    """See the module."""

    __slots__ = ("_clock", "_images", "_known", "_records", "_rows", "_since", "_threads", "_until")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody looks yet."""
        self._clock = clock
        self._images: dict[str, Tally] = {}
        # Who opened a file last, by nodeid.
        self._threads: dict[int, int] = {}
        # None while nobody looks.
        self._rows: dict[tuple[str, Program], Row] | None = None
        self._known: dict[int, tuple[float, int, Program]] = {}
        self._records: dict[int, ObjectRecord | bytes] = {}
        self._since = self._until = 0.0

    def follow(self, records: dict[int, ObjectRecord | bytes]) -> None:
        """``records`` are those of the files that are being read, by nodeid; they come and go."""
        self._records = records

    def opened(self, node: int, thread: int) -> None:
        """Take note of who opened a file."""
        threads = self._threads
        if len(threads) >= _THREADS_MAX:
            del threads[next(iter(threads))]
        threads[node] = thread
        if self._rows is not None:
            record = self._records.get(node)
            if isinstance(record, ObjectRecord):
                record.tally = self.tally(node, record.lookup.name)

    def opener(self, node: int) -> int:
        """Return the thread that opened a file last; 0 where that is not known."""
        return self._threads.get(node, 0)

    def tally(self, node: int, image: str) -> Tally:
        """Return what reads of a file of an image are to be added to."""
        if self._rows is None:
            return self._image(image)
        thread = self._threads.get(node, 0)
        pid, program = self._who(thread)
        key = (image, program)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_MAX:
                key = (image, OTHERS)
                row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = Row(Tally(), pid)
        row.pid = pid or row.pid
        return row.tally

    def by_image(self) -> dict[str, Tally]:
        """Return what was read of each image, by all together."""
        totals = {image: replace(tally) for image, tally in self._images.items()}
        for (image, _), row in (self._rows or {}).items():
            totals.setdefault(image, Tally()).add(row.tally)
        return totals

    def forget(self, image: str) -> None:
        """Drop an image that is not shown any more."""
        self._images.pop(image, None)
        if self._rows is not None:
            self._rows = {key: row for key, row in self._rows.items() if key[0] != image}

    # -- while somebody looks ----------------------------------------------------------------------------------------------------------

    def look(self) -> tuple[float, Iterable[tuple[str, Program, Row]]]:
        """Return for how many seconds somebody looks, and what each program has read of each image meanwhile; and go on looking."""
        now = self._clock()
        if self._rows is None:
            self._rows = {}
            self._since = now
            for node, record in self._records.items():
                if isinstance(record, ObjectRecord):
                    record.tally = self.tally(node, record.lookup.name)
        self._until = now + WATCH_SECONDS
        return now - self._since, [(image, program, row) for (image, program), row in self._rows.items()]

    def rest(self) -> None:
        """Stop looking if nobody has asked for a while."""
        if self._rows is None or self._clock() < self._until:
            return
        rows, self._rows = self._rows, None
        self._known.clear()
        for (image, _), row in rows.items():
            self._image(image).add(row.tally)
        for record in self._records.values():
            if isinstance(record, ObjectRecord):
                record.tally = self._image(record.lookup.name)

    def _image(self, image: str) -> Tally:
        tally = self._images.get(image)
        if tally is None:
            tally = self._images[image] = Tally()
        return tally

    def _who(self, thread: int) -> tuple[int, Program]:
        """Return a thread's process and program; what was found is good for a second, as a number may be given anew."""
        now = self._clock()
        at, pid, program = self._known.get(thread, (-_KNOWN_SECONDS, 0, UNKNOWN))
        if now - at >= _KNOWN_SECONDS:
            pid, program = program_of(thread) if thread else (0, UNKNOWN)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[thread] = now, pid, program
        return pid, program


def program_of(thread: int) -> tuple[int, Program]:
    """Return the process of a thread and what it is; ``UNKNOWN`` if there is no such thread any more.

    Only files of ``/proc`` that wait for nothing of the process: its command line, for one, would.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        folder = _PROC / str(thread)
        lines = (folder / "status").read_text(errors="replace").splitlines()
        pid = int(next(line for line in lines if line.startswith("Tgid:")).split()[1])
        command = (_PROC / str(pid) / "comm").read_text(errors="replace").rstrip("\n")
        return pid, Program(cgroup_in((folder / "cgroup").read_text(errors="replace")), command)
    return 0, UNKNOWN


def cgroup_in(text: str) -> str:
    """Return the path that ``/proc/PID/cgroup`` names: the unified hierarchy's, or where that says nothing the memory controller's."""
    paths = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else [number]:
            paths[controller] = path
    unified = paths.get("0", "/")
    return unified if unified != "/" else paths.get("memory", unified)
