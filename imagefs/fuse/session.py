"""One FUSE session: mounting it, running it, ending it. pyfuse3 allows one a process.

The kernel's settings for it are raised once the protocol is agreed on (before that the kernel would put them back), by a thread with a
deadline, since both files can block. Device numbers come from ``/proc/self/mountinfo``: asking the mountpoint itself would ask this
process.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from imagefs.cache.image import Image
from imagefs.errors import DeadlineError, MountError
from imagefs.fuse.forest import TREES, Forest, Slot
from imagefs.fuse.fusectl import connections
from imagefs.fuse.guard import RequestLog, Requests
from imagefs.fuse.operations import ImageOperations
from imagefs.fuse.reading import Reading

READ_AHEAD_KB: Final = 4096
MAX_BACKGROUND: Final = 1024
"""Requests of read-ahead that the kernel sends before it waits for answers: reads that hang must not hold up those that need no store."""

MAX_TASKS: Final = 2048
"""Requests in the handlers at once, likewise."""

_START_SECONDS: Final = 10.0
_NOTIFY_SECONDS: Final = 5.0


class FuseSession:
    """The session of this process. ``mount`` and ``run`` once each, in this order."""

    def __init__(self, nursery: trio.Nursery, forest: Forest, reading: Reading, requests: Requests, log: RequestLog) -> None:
        """``requests`` counts what the kernel asks."""
        self._forest = forest
        self._reading = reading
        self._requests = requests
        self._log = log
        self._agreed = trio.Event()
        self._mounted = False
        self._nursery = nursery
        self._notifying = 0

    def mount(self, mountpoint: Path, *, everybody: bool) -> None:
        """Mount at ``mountpoint``; ``everybody`` lets users other than this one in (root only). ``MountError`` if the kernel refuses."""
        operations = ImageOperations(self._forest, self._reading, self._requests, self._agreed.set)
        options = {"ro", "default_permissions", "fsname=imagefs", "subtype=imagefs"}
        if everybody:
            options.add("allow_other")
        try:
            pyfuse3.init(operations, str(mountpoint), options)
        except RuntimeError as error:
            raise MountError(
                f"cannot mount a FUSE file system at {mountpoint}: {error}",
                hint="`imagefs doctor` says what is missing: /dev/fuse, or fusermount3 without root",
            ) from error
        self._mounted = True

    async def run(self) -> None:
        """Serve requests until the file system is unmounted or :meth:`stop` is called."""
        await pyfuse3.main(max_tasks=MAX_TASKS)

    async def agreed(self) -> None:
        """Wait until the kernel talks to us. ``DeadlineError`` if it does not."""
        with trio.move_on_after(_START_SECONDS) as scope:
            await self._agreed.wait()
        if scope.cancelled_caught:
            raise DeadlineError("the kernel did not start the FUSE session")

    async def tune(self, device: str) -> None:
        """Raise read-ahead and background requests of the mount with this ``major:minor``, where this user may."""
        with trio.move_on_after(_NOTIFY_SECONDS):
            await trio.to_thread.run_sync(_tune, device, abandon_on_cancel=True)

    def stop(self) -> None:
        """Let :meth:`run` return. Only from the trio thread."""
        if self._mounted:
            pyfuse3.terminate()

    def close(self) -> bool:
        """Unmount and release the session, after ``run`` has returned; False if a thread still uses it: then it is left as it is."""
        if self._notifying:
            return False
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)
        return True

    def show(self, number: int, image: Image) -> Slot:
        """Show an image as ``trees/<manifest>``."""
        return self._forest.add(number, image)

    def hide(self, slot: Slot) -> None:
        """Take an image out, and let the kernel drop what it has of it, which takes seconds where that is much: nobody waits for it."""
        self._forest.drop(slot)
        self._reading.forget(slot)
        self._nursery.start_soon(self._drop_cached, slot.name)

    async def _drop_cached(self, name: bytes) -> None:
        self._notifying += 1
        # A handler must not do this, nor the thread that runs them: the kernel may ask something before it answers.
        await trio.to_thread.run_sync(_invalidate, name, abandon_on_cancel=True)
        # Not in a finally: a thread that was abandoned still uses the session.
        self._notifying -= 1


def _invalidate(name: bytes) -> None:
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_entry(pyfuse3.InodeT(TREES), pyfuse3.FileNameT(name))


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
