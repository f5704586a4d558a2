"""Mounting without root: the FUSE session itself is mounted at the mountpoint, by ``fusermount3``, and shows one image.

The daemon ends when that mount goes, whoever took it away.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.cache.image import Image
from imagefs.daemon.requests import Mount
from imagefs.daemon.service import in_thread
from imagefs.errors import DeadlineError, MountError
from imagefs.fuse.forest import Forest
from imagefs.fuse.session import FuseSession
from imagefs.mount.checks import check_mountpoint
from imagefs.mount.holders import holders
from imagefs.mount.mountinfo import FUSE_TYPE, mount_at
from imagefs.mount.table import MountRecord, MountTable

_CALL_SECONDS: Final = 20.0


class SingleMounter:
    """See the module. Belongs to the trio thread."""

    def __init__(
        self,
        nursery: trio.Nursery,
        session: FuseSession,
        forest: Forest,
        table: MountTable,
        own: Path,
        *,
        stop: Callable[[], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``own`` is the one mountpoint that this daemon is for; ``stop`` ends the daemon."""
        self._nursery = nursery
        self._session = session
        self._forest = forest
        self._table = table
        self._own = own
        self._stop = stop
        self._log = log
        self._lock = trio.Lock()
        self._answering = False

    @property
    def idle(self) -> bool:
        """The image is not mounted."""
        return not len(self._table)

    async def mount(self, image: Image, request: Mount, mountpoint: str) -> MountRecord:
        """Mount the image; once in the life of a daemon."""
        async with self._lock:
            path = Path(mountpoint)
            if path != self._own:
                raise MountError(f"this daemon serves {self._own}, not {mountpoint}")
            with trio.move_on_after(_CALL_SECONDS) as scope:
                await in_thread(check_mountpoint, path, abandon=True)
            if scope.cancelled_caught:
                raise DeadlineError(f"the file system at {path} did not answer within {_CALL_SECONDS:g} s")
            if self._forest.alone is not None:
                raise MountError("this daemon is ending", hint="try again")
            slot = self._forest.add_alone(self._table.slot_for(image.name), image)
            try:
                self._session.mount(path, everybody=False)
                self._nursery.start_soon(self._run)
                await self._session.agreed()
                record = MountRecord(mountpoint, image.name, request.ref or image.name, slot.number, "fuse", time.time())
                self._table.add(record)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self.shutdown()
                self._stop()
                raise
            return record

    async def _run(self) -> None:
        await self._session.run()
        self._table.clear()
        if not self._answering:
            self._stop()

    async def umount(self, mountpoint: str, *, lazy: bool) -> None:
        """Unmount, as ``fusermount3 -u`` does."""
        async with self._lock:
            entry = mount_at(self._own)
            if mountpoint != str(self._own) or entry is None or entry.fstype != FUSE_TYPE:
                raise MountError(f"no image is mounted at {mountpoint}")
            # The session ends before the answer is sent: the daemon must outlive that.
            self._answering = True
            problem = await in_thread(release_mount, self._own, lazy)
            if problem:
                self._answering = False
                users = await in_thread(holders, mountpoint)
                raise MountError(
                    f"{mountpoint} is in use by {', '.join(users)}" if users else f"cannot unmount {mountpoint}: {problem}",
                    hint="end them, or use --lazy to let them finish",
                )
            self._table.remove(mountpoint)

    async def reconcile(self) -> None:
        """The session ends by itself when its mount goes."""

    async def shutdown(self) -> None:
        """Unmount."""
        entry = mount_at(self._own)
        if entry is not None and entry.fstype == FUSE_TYPE and self._forest.alone is not None:
            problem = await in_thread(release_mount, self._own, False)
            if problem:
                self._log.warning("unmounted_in_use", mountpoint=str(self._own), problem=problem)
                await in_thread(release_mount, self._own, True)
        self._table.clear()


def release_mount(path: Path, lazy: bool) -> str:  # called through a thread, by position
    """Run ``fusermount3 -u``; return what it complains about, or nothing."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_SECONDS, check=False)  # noqa: S603 # our own arguments
    except FileNotFoundError:
        return "fusermount3 is not installed"
    except subprocess.TimeoutExpired:
        return "fusermount3 did not end"
    return "" if done.returncode == 0 else done.stderr.strip() or f"fusermount3 ended with {done.returncode}"


def recover_single(path: Path, table: MountTable) -> list[str]:
    """Take away the mount that a dead daemon left at ``path``. Returns the mountpoints. The caller holds the instance's lock."""
    entry = mount_at(path)
    gone = []
    if entry is not None and entry.fstype == FUSE_TYPE and (not release_mount(path, lazy=True)):
        gone.append(str(path))
    table.clear()
    return gone
