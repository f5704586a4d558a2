"""Mounting as root: one FUSE mount in the instance's directory, and at each mountpoint an image.

That is a bind mount of ``trees/<manifest>`` of the FUSE mount, or in kernel mode an overlay whose last layer is its ``objects/``.

A snapshot is restored again and again, and is mounted each time for a moment: it is shown for a while longer, so that the kernel keeps its
pages and the next restore need not ask for them.

Invariants: a mount that fails at any step leaves nothing mounted and no slot taken; an image is shown as long as it is mounted or one of
its files is open; the table knows of each before the kernel does, as the next worker goes by it. Calls that touch a mount of ours run in
threads, because this very process answers them.

A worker counts the open files of the images that it shows. Of those that it has from one that died it does not know how many were open:
such an image is shown on after a lazy unmount until nothing is mounted.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import trio
from msgspec import structs

from imagefs.cache.image import Image
from imagefs.daemon.kernel_mounts import KernelMounts
from imagefs.daemon.requests import Mount
from imagefs.daemon.service import in_thread
from imagefs.errors import AccessError, DeadlineError, ImageFSError, MountError, UnsupportedError
from imagefs.format.manifest import IMAGE
from imagefs.format.objectmap import ObjectRow
from imagefs.fuse.forest import Forest, Slot
from imagefs.fuse.session import FuseSession
from imagefs.mount.bind import BusyError, bind_readonly, unmount
from imagefs.mount.checks import check_mountpoint
from imagefs.mount.holders import holders
from imagefs.mount.kernel import settle
from imagefs.mount.mountinfo import FUSE_TYPE, MountEntry, is_image, mount_at, read_images
from imagefs.mount.table import FUSE, KERNEL, MountRecord, MountTable

_CALL_SECONDS = 20.0
_WARM_SECONDS = 300.0
_WARM_MAX = 8


class RootMounter:
    """See the module. Belongs to the trio thread."""

    def __init__(
        self,
        session: FuseSession,
        forest: Forest,
        table: MountTable,
        fuse: Path,
        *,
        number: int,
        kernel: KernelMounts | None,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``fuse`` is where ``session`` is mounted; ``number`` says how many workers were before this one.

        ``kernel`` makes mounts in kernel mode; None where there is no SSD tier, which that needs.
        """
        self._session = session
        self._forest = forest
        self._table = table
        self._fuse = fuse
        self._number = number
        self._kernel = kernel
        self._log = log
        self._lock = trio.Lock()
        self._unsure: set[int] = set()  # slots of which it is not known how many files are open
        self._left: dict[int, float] = {}  # when snapshots were unmounted, by slot, the last one last

    @property
    def idle(self) -> bool:
        """Nothing is mounted or open."""
        return not len(self._table) and not any(map(self._forest.is_in_use, self._forest.slots.values()))

    def resume(self, images: Mapping[int, Image]) -> None:
        """Show what the worker before this one has shown. Before the session starts."""
        opens = self._table.handed_on(self._number - 1)
        for number, image in images.items():
            slot = self._session.show(number, image)
            if number in opens:
                slot.opens = opens[number]
            else:
                self._unsure.add(number)

    def missing(self) -> dict[int, str]:
        """Return the images that are to be shown and are not, by slot."""
        return {number: manifest for number, manifest in self._table.images().items() if number not in self._forest.slots}

    def show_late(self, number: int, image: Image) -> None:
        """Show one that was missing."""
        self._session.show(number, image)
        self._unsure.add(number)

    def hand_on(self) -> None:
        """Leave everything to the next worker, after the session was left."""
        # What is open below objects/ is not counted by image.
        sure = [slot for slot in self._forest.slots.values() if slot.number not in self._unsure and not self._forest.has_open_objects(slot)]
        try:
            self._table.hand_on({slot.number: slot.opens for slot in sure}, self._number)
        except ImageFSError as error:
            self._log.warning("table_not_saved", error=error.message)

    async def mount(self, image: Image, request: Mount, mountpoint: str) -> tuple[MountRecord, str]:
        """Mount an image at ``mountpoint``, in kernel mode unless FUSE mode is asked for or all that works."""
        async with self._lock:
            mode, reason = await self._mode(request, image.manifest.kind)
            path = Path(mountpoint)
            await self._call(path, check_mountpoint, path)
            slot = self._forest.by_name.get(image.name.encode())
            number = self._table.slot_for(image.name) if slot is None else slot.number
            ahead = request.prefetch, request.label
            record = MountRecord(mountpoint, image.name, request.ref or image.name, number, mode, time.time(), *ahead)
            self._table.add(record)
            try:
                if slot is None:
                    self._session.show(number, image)
                problem = await self._mount_kernel(image, request, path) if mode == KERNEL else None
                if problem is not None:
                    mode, reason = FUSE, problem
                    record = structs.replace(record, mode=mode)
                    self._table.add(record)
                if mode == FUSE:
                    await self._call(path, bind_readonly, self._fuse / "trees" / image.name, path)
            except BaseException:
                self._forget(mountpoint)
                raise
            return record, reason

    async def _mode(self, request: Mount, kind: str) -> tuple[str, str]:
        """Return in which mode to mount, and why."""
        if request.mode == FUSE:
            return FUSE, "asked for"
        try:
            return KERNEL, await self._kernel_mode(kind)
        except ImageFSError as error:
            if _must_be_kernel(request):
                raise
            return FUSE, error.message

    async def _kernel_mode(self, kind: str) -> str:
        """Return by which means kernel mode works here; raise why it does not, or must not be."""
        if kind != IMAGE:
            # What the kernel reads by itself nobody verifies, and whose memory this becomes runs what it says.
            raise UnsupportedError(f"a {kind} is read through the daemon, which verifies each byte", hint="use --mode fuse")
        if self._kernel is None:
            raise UnsupportedError("kernel mode needs an SSD tier, and this daemon has none", hint="its log says why")
        found = await in_thread(self._kernel.mode)
        if not found.ok:
            raise UnsupportedError(
                f"kernel mode cannot be on this host: {found.reason}", hint="imagefs doctor says what helps; --mode fuse works"
            )
        return found.reason

    async def _mount_kernel(self, image: Image, request: Mount, path: Path) -> str | None:
        """Mount in kernel mode; return why that failed, where FUSE mode will do."""
        assert self._kernel is not None
        mount = partial(self._kernel.mount, upper=_path(request.upper), dev=request.dev, suid=request.suid)
        try:
            await self._call(path, mount, image, path)
        except (MountError, AccessError) as error:
            if _must_be_kernel(request):
                raise
            self._log.warning("kernel_mode_failed", mountpoint=str(path), error=error.message)
            return error.message
        return None

    async def _call(self, path: Path, function: Callable[..., object], *args: object) -> None:
        with trio.move_on_after(_CALL_SECONDS) as scope:
            await in_thread(function, *args, abandon=True)
        if scope.cancelled_caught:
            raise DeadlineError(f"the file system at {path} did not answer within {_CALL_SECONDS:g} s")

    async def umount(self, mountpoint: str, *, lazy: bool) -> None:
        """Take a bind mount away."""
        async with self._lock:
            entry = mount_at(mountpoint)
            if not self._is_ours(entry):
                raise self._not_ours(mountpoint, entry)
            path = Path(mountpoint)
            try:
                await self._call(path, _unmount_lazily if lazy else unmount, path)
            except BusyError as error:
                users = await in_thread(holders, mountpoint)
                raise MountError(
                    f"{mountpoint} is in use" + (f" by {', '.join(users)}" if users else ""),
                    hint="end them, or use --lazy to let them finish",
                ) from error
            self._forget(mountpoint, in_use=lazy)
            await self._release_trees()

    def _not_ours(self, mountpoint: str, entry: MountEntry | None) -> MountError:
        if entry is not None and self._table.get(mountpoint) and any(found.mountpoint == mountpoint for found in read_images()):
            return MountError(f"another mount covers the image at {mountpoint}: {entry.source} ({entry.fstype})", hint="unmount that first")
        return MountError(f"no image is mounted at {mountpoint}", hint="`imagefs daemon status` lists the mounts")

    def _forget(self, mountpoint: str, *, in_use: bool = False) -> None:
        """Forget a mount; ``in_use``: files that were opened through it may be open still."""
        record = self._table.get(mountpoint)
        if record is None:
            return
        slot = self._forest.slots.get(record.slot)
        lingers = slot is not None and (self._forest.is_in_use(slot) or (in_use and slot.number in self._unsure))
        try:
            self._table.remove(mountpoint, lingers=lingers)
        except ImageFSError as error:
            # What is mounted is what counts; the file is put right by the next change.
            self._log.warning("table_not_saved", error=error.message)
        if slot is not None:
            if slot.image.manifest.kind != IMAGE:
                self._left.pop(slot.number, None)
                self._left[slot.number] = time.monotonic()
            self._let_go(slot)

    def _is_warm(self, slot: Slot) -> bool:
        """Say whether an image is one of the few snapshots that were unmounted of late."""
        left = self._left.get(slot.number)
        if left is None:
            return False
        if time.monotonic() - left < _WARM_SECONDS and slot.number in list(self._left)[-_WARM_MAX:]:
            return True
        del self._left[slot.number]
        return False

    def _let_go(self, slot: Slot) -> None:
        """Take an image out if nobody uses it any more, as far as is known."""
        name = slot.image.name
        if self._forest.is_in_use(slot) or self._table.of_image(name) or self._is_warm(slot):
            return
        if slot.number in self._unsure and self._table.lingers(name) and len(self._table):
            return
        self._unsure.discard(slot.number)
        self._session.hide(slot)
        try:
            self._table.settle(name)
        except ImageFSError as error:
            self._log.warning("table_not_saved", error=error.message)

    def _device(self) -> str | None:
        entry = mount_at(self._fuse)
        return entry.device if entry is not None and entry.fstype == FUSE_TYPE else None

    def _is_ours(self, entry: MountEntry | None) -> bool:
        if entry is None or entry.fstype == FUSE_TYPE:
            return entry is not None and entry.device == self._device()
        return is_image(entry) and self._table.get(entry.mountpoint) is not None

    async def _release_trees(self) -> None:
        """Take away the trees over which no image is mounted any more."""
        if self._kernel is not None:
            mounted = {record.manifest for record in self._table if record.mode == KERNEL}
            await in_thread(self._kernel.keep, mounted)

    async def settle(self, is_local: Callable[[ObjectRow], bool]) -> None:
        """Have the mounts in kernel mode look anew where the content of their files is, and the kernel drop what it has twice."""
        async with self._lock:
            for record in self._table:
                if record.mode == KERNEL:
                    try:
                        await self._call(Path(record.mountpoint), settle, Path(record.mountpoint))
                    except ImageFSError as error:
                        self._log.warning("not_settled", mountpoint=record.mountpoint, error=error.message)
        await self._session.drop_objects(self._forest.take_moved(is_local))

    async def reconcile(self) -> None:
        """Forget mounts that somebody else took away, and images that only open files had kept."""
        async with self._lock:
            entries = read_images()
            fuse = mount_at(self._fuse, entries)
            there = {
                entry.mountpoint for entry in entries if entry.fstype != FUSE_TYPE or (fuse is not None and entry.device == fuse.device)
            }
            for record in self._table:
                if record.mountpoint not in there:
                    self._log.info("unmounted_by_others", mountpoint=record.mountpoint)
                    self._forget(record.mountpoint, in_use=True)
            for slot in list(self._forest.slots.values()):
                self._let_go(slot)
            await self._release_trees()

    async def shutdown(self) -> None:
        """Unmount everything; who still uses something keeps it until the process ends."""
        async with self._lock:
            for record in self._table:
                path = Path(record.mountpoint)
                try:
                    try:
                        await self._call(path, unmount, path)
                    except BusyError:
                        self._log.warning(
                            "unmounted_in_use", mountpoint=record.mountpoint, users=await in_thread(holders, record.mountpoint)
                        )
                        await self._call(path, _unmount_lazily, path)
                except ImageFSError as error:
                    self._log.error("unmount_failed", mountpoint=record.mountpoint, error=error.message)
            self._table.clear()
            await self._release_trees()


def _must_be_kernel(request: Mount) -> bool:
    return bool(request.mode == KERNEL or request.upper or request.dev or request.suid)


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _unmount_lazily(path: Path) -> None:
    unmount(path, lazy=True)
