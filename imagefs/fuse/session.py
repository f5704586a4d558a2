"""One FUSE session: taking its connection over, serving it, leaving it to another process. pyfuse3 allows one a process.

The connection is mounted by another process, which keeps it (``handover``); it ends when it is unmounted, or when both are gone.

The kernel's settings for it are raised once the protocol is agreed on (before that the kernel would put them back), by a thread with a
deadline, since both files can block. Device numbers come from ``/proc/self/mountinfo``: asking the mountpoint itself would ask this
process.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import pyfuse3
import trio

from imagefs.cache.image import Image
from imagefs.errors import DeadlineError, MountError
from imagefs.fuse.forest import TREES, Forest, Slot
from imagefs.fuse.fusectl import connections
from imagefs.fuse.guard import RequestLog, Requests
from imagefs.fuse.handover import Takeover
from imagefs.fuse.operations import ImageOperations
from imagefs.fuse.reading import Reading

READ_AHEAD_KB: Final = 4096
MAX_BACKGROUND: Final = 1024
"""Requests of read-ahead that the kernel sends before it waits for answers: reads that hang must not hold up those that need no store."""

MAX_TASKS: Final = 2048
"""Requests in the handlers at once, likewise."""

_START_SECONDS: Final = 10.0
_LAST_SECONDS: Final = 0.5
_LAST_SECONDS_OF_ALL: Final = 10.0
_ROUND_SECONDS: Final = 0.001
_NOTIFY_SECONDS: Final = 5.0


class Lender(Protocol):
    """Who has the connection."""

    async def connection(self) -> Takeover:
        """Return it, mounted if it was not. Raises an ``ImageFSError`` if there is none."""

    def answered(self) -> None:
        """Take note that the kernel has its answer."""


class FuseSession:
    """The session of this process: it can be started once."""

    def __init__(
        self, nursery: trio.Nursery, forest: Forest, reading: Reading, requests: Requests, *, lender: Lender, log: RequestLog
    ) -> None:
        """``requests`` counts what the kernel asks."""
        self._nursery = nursery
        self._forest = forest
        self._reading = reading
        self._requests = requests
        self._lender = lender
        self._log = log
        self._takeover: Takeover | None = None
        self._agreed = trio.Event()
        self._ended = trio.Event()
        self._leaving = False

    async def start(self, ended: Callable[[], None]) -> None:
        """Serve from now on what the forest shows; ``ended`` is called when there is nothing to serve any more, as it was unmounted.

        Returns when kernel and libfuse have agreed. ``MountError`` if the kernel refuses, ``DeadlineError`` if it says nothing.
        """
        self._takeover = await self._lender.connection()
        operations = ImageOperations(self._forest, self._reading, self._requests, self._switch)
        try:
            # The options of the mount are those that it has.
            pyfuse3.init(operations, self._takeover.path, set())
        except RuntimeError as error:
            raise MountError(f"libfuse does not take the FUSE connection: {error}") from error
        self._nursery.start_soon(self._run, ended)
        with trio.move_on_after(_START_SECONDS) as scope:
            await self._agreed.wait()
        if scope.cancelled_caught:
            raise DeadlineError("the FUSE session did not start")
        self._lender.answered()

    def _switch(self) -> None:
        assert self._takeover is not None
        problem = self._takeover.switch()
        if problem:
            self._log.error("requests_not_sent_again", error=problem)
        self._agreed.set()

    async def _run(self, ended: Callable[[], None]) -> None:
        await pyfuse3.main(max_tasks=MAX_TASKS)
        self._ended.set()
        if not self._leaving:
            ended()

    async def tune(self, device: str) -> None:
        """Raise read-ahead and background requests of the mount with this ``major:minor``, where this user may."""
        with trio.move_on_after(_NOTIFY_SECONDS):
            await trio.to_thread.run_sync(_tune, device, abandon_on_cancel=True)

    async def leave(self, *, answer: bool) -> None:
        """Ask the kernel for nothing more, and say nothing from then on; with ``answer``, after answering what it has asked, for a while.

        That is short where the next process is asked again what this one has left, and long where it is not.
        """
        if self._takeover is None or self._leaving:
            return
        self._leaving = True
        if self._agreed.is_set():
            if answer:
                with trio.move_on_after(_LAST_SECONDS if self._takeover.is_asked_again else _LAST_SECONDS_OF_ALL):
                    while not self._ended.is_set():
                        # Whoever waits for a request stops waiting; who has one by now answers it, and comes to wait perhaps. terminate()
                        # would make libfuse throw away what is read in this moment.
                        trio.lowlevel.notify_closing(self._takeover.place)
                        await trio.sleep(_ROUND_SECONDS)
            if not self._ended.is_set():
                pyfuse3.terminate()
        self._takeover.mute()

    def show(self, number: int, image: Image) -> Slot:
        """Show an image as ``trees/<manifest>``."""
        return self._forest.add(number, image)

    def hide(self, slot: Slot) -> None:
        """Take an image out, and let the kernel drop what it has of it, which takes seconds where that is much: nobody waits for it."""
        self._forest.drop(slot)
        self._reading.forget(slot)
        self._nursery.start_soon(self._drop_cached, slot.name)

    async def drop_objects(self, nodes: Sequence[int]) -> None:
        """Let the kernel drop the content that it has of these objects."""
        if nodes:
            await trio.to_thread.run_sync(_forget_content, nodes, abandon_on_cancel=True)

    async def _drop_cached(self, name: bytes) -> None:
        # A handler must not do this, nor the thread that runs them: the kernel may ask something before it answers.
        await trio.to_thread.run_sync(_invalidate, name, abandon_on_cancel=True)


def _invalidate(name: bytes) -> None:
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_entry(pyfuse3.InodeT(TREES), pyfuse3.FileNameT(name))


def _forget_content(nodes: Sequence[int]) -> None:
    for node in nodes:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(node))


def _tune(device: str) -> None:
    minor = device.partition(":")[2]
    with contextlib.suppress(OSError):
        _write(os.open(f"/sys/class/bdi/{device}/read_ahead_kb", os.O_WRONLY | os.O_CLOEXEC), READ_AHEAD_KB)
    with contextlib.suppress(OSError), connections() as folder:
        _write(os.open(f"{minor}/max_background", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder), MAX_BACKGROUND)
        _write(os.open(f"{minor}/congestion_threshold", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder), MAX_BACKGROUND)


def _write(descriptor: int, value: int) -> None:
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
