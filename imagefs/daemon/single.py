"""Mounting without root: the FUSE file system itself is mounted at the mountpoint, by ``fusermount3``, and shows one image.

The daemon ends when that mount goes, whoever took it away. The table knows of the mount before the kernel does, as the next worker goes by
it.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.cache.image import Image
from imagefs.daemon.requests import Mount
from imagefs.daemon.service import in_thread
from imagefs.errors import DeadlineError, MountError, UnsupportedError
from imagefs.fuse.forest import Forest
from imagefs.fuse.session import FuseSession
from imagefs.mount.checks import check_mountpoint
from imagefs.mount.fusemount import is_fuse_mount, release_mount
from imagefs.mount.holders import holders
from imagefs.mount.table import FUSE, KERNEL, MountRecord, MountTable

_CALL_SECONDS: Final = 20.0


class SingleMounter:
    """See the module. Belongs to the trio thread."""

    def __init__(
        self,
        session: FuseSession,
        forest: Forest,
        table: MountTable,
        own: Path,
        *,
        stop: Callable[[], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``own`` is the one mountpoint that this daemon is for; ``stop`` ends the daemon."""
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

    async def mount(self, image: Image, request: Mount, mountpoint: str) -> tuple[MountRecord, str]:
        """Mount the image; once in the life of a daemon."""
        if request.mode == KERNEL or request.upper or request.dev or request.suid:
            raise UnsupportedError("kernel mode needs root (CAP_SYS_ADMIN)", hint="use --mode fuse, or run as root")
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
            slot, ahead = self._table.slot_for(image.name), (request.prefetch, request.label)
            record = MountRecord(mountpoint, image.name, request.ref or image.name, slot, FUSE, time.time(), *ahead)
            self._table.add(record)
            try:
                self._forest.add_alone(record.slot, image)
                await self._session.start(self._gone)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self.shutdown()
                self._stop()
                raise
            return record, "kernel mode needs root"

    async def resume(self, images: Mapping[int, Image]) -> None:
        """Serve what the worker before this one has served, if there was one."""
        for number, image in images.items():
            self._forest.add_alone(number, image)
            await self._session.start(self._gone)

    def hand_on(self) -> None:
        """The mount table has it already."""

    def _gone(self) -> None:
        self._table.clear()
        if not self._answering:
            self._stop()

    async def umount(self, mountpoint: str, *, lazy: bool) -> None:
        """Unmount, as ``fusermount3 -u`` does."""
        async with self._lock:
            if mountpoint != str(self._own) or not is_fuse_mount(self._own):
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
        if is_fuse_mount(self._own) and self._forest.alone is not None:
            problem = await in_thread(release_mount, self._own, False)
            if problem:
                self._log.warning("unmounted_in_use", mountpoint=str(self._own), problem=problem)
                await in_thread(release_mount, self._own, True)
        self._table.clear()
