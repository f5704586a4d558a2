"""Who the processes of a Start are: looked up in ``/proc`` when they are first seen, and again a little later, because of ``exec``.

A program opens the next one's file before it becomes that: so what it is called is known for good only after a while, and of a process that
is gone by then the last that was seen counts. Looking happens in threads: reading a command line may wait for a process, which may wait for
us. Where such a thread hangs, a few more are tried, and then nobody is looked up any more.
"""

import heapq
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from imagefs.cache.starts import Process, Start

_AGAIN: Final = (0.0, 0.2, 1.0)
"""Seconds after which a process is looked at, from when it is first seen."""

_COMMAND_MAX: Final = 4096
_SECONDS: Final = 2.0
_PROC: Final = Path("/proc")
_KTHREADD: Final = "2"
_limiter: Final = trio.CapacityLimiter(4)


class Sighting:
    """What was found out of a thread: its process, and that one's arguments."""

    __slots__ = ("arguments", "process")

    def __init__(self, process: Process, arguments: list[str]) -> None:
        """See the class."""
        self.process = process
        self.arguments = arguments


async def follow_processes(start: Start) -> None:
    """Find out who the processes of a Start are, until cancelled."""
    due: list[tuple[float, int, int]] = []
    known, first = 0, -1
    news = trio.Event()

    def noticed() -> None:
        news.set()

    start.noticed = noticed
    while True:
        now = trio.current_time()
        for thread in start.threads[known:]:
            heapq.heappush(due, (now, 0, thread))
        if start.first != first and start.first in start.threads[:known]:
            # Others were taken for the first before.
            heapq.heappush(due, (now, 0, start.first))
        known, first = len(start.threads), start.first
        looks = []
        while due and due[0][0] <= now:
            looks.append(heapq.heappop(due)[1:])
        if looks:
            await _look(start, looks)
            for number, thread in looks:
                if number + 1 < len(_AGAIN):
                    heapq.heappush(due, (now + _AGAIN[number + 1], number + 1, thread))
            continue
        news = trio.Event()
        if known == len(start.threads) and first == start.first:
            with trio.move_on_at(due[0][0] if due else float("inf")):
                await news.wait()


async def _look(start: Start, looks: list[tuple[int, int]]) -> None:
    """Look at threads, each for the n-th time."""
    threads = [thread for _, thread in looks]
    found: list[Sighting | None] = [None] * len(threads)
    with trio.move_on_after(_SECONDS):
        found = await trio.to_thread.run_sync(lambda: [sighted(thread) for thread in threads], abandon_on_cancel=True, limiter=_limiter)
    for (number, thread), sighting in zip(looks, found, strict=True):
        if sighting is not None:
            start.processes[thread] = sighting.process
        if thread == start.first:
            if sighting is not None:
                start.facts.entry = sighting.arguments
            start.entry_known |= sighting is None or number + 1 == len(_AGAIN)
            if start.identified is not None and start.facts.entry and start.is_sure:
                start.identified(start)


def sighted(thread: int) -> Sighting | None:
    """Return what a thread is of; None if it is no more. Blocks."""
    if thread <= 0:
        return None
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = (_PROC / str(thread) / "status").read_text(errors="replace").splitlines()
        values = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        pid = int(values["Tgid"])
        with (_PROC / str(pid) / "cmdline").open("rb") as file:
            text = file.read(_COMMAND_MAX).decode(errors="replace")
        if not text and "VmSize" not in values and values["PPid"] != _KTHREADD:
            # It ends, or has ended and nobody has looked how yet: its name is there still, its arguments are not.
            return None
        arguments = text.removesuffix("\0").split("\0") if text else [values["Name"]]
        return Sighting(Process(pid, " ".join(arguments), int(values["PPid"])), arguments)
    return None
