"""Opening the SSD tier, and setting it right after an unclean stop.

The daemon trusts nothing in it, so an unclean stop endangers no reader of its own. What it leaves are files that the index does not know:
complete ones are verified and taken in, others removed, in the background while the tier serves.

The kernel, which reads ``objects/``, does trust. If the *machine* has stopped, files may have lost what the disk had said to be safe: then
``objects/`` begins empty, and each file gets its place again when it was verified (``disk_suspects``), those first that readers ask for. A
worker that was killed leaves the machine, and what it keeps in memory, as it was. Which of both it was, the mark ``unclean`` tells, which
holds the machine's boot id.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import trio

from imagefs.cache.checks import Checker, Verdict
from imagefs.cache.clearing import clear_suspects
from imagefs.cache.disk import DiskLog, DiskTier
from imagefs.cache.disk_files import OBJECTS, PARTIAL, Folders
from imagefs.cache.disk_index import DiskIndex, Row, open_index
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.disk_suspects import set_apart
from imagefs.cache.holdings import Holdings
from imagefs.cache.idle import IdleThread
from imagefs.errors import StoreError
from imagefs.format.objectmap import ObjectMap

UNCLEAN: Final = "unclean"
_FLOOR_MAX: Final = 10 << 30
_PAUSE: Final = 0.002
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class OpenedTier:
    """A tier with what it stands on. ``close`` after its task has ended."""

    def __init__(
        self,
        place: CachePlace,
        log: DiskLog,
        *,
        limit: int,
        floor: int | None,
        mounted: Callable[[], Iterable[ObjectMap]] = tuple,
        lives_on: bool = False,
    ) -> None:
        """``floor`` None: a twentieth of the file system, 10 GiB at most. ``StoreError`` if the disk does not take what this needs.

        ``lives_on``: mounts over this cache are known to have outlived its last use, so the machine has not stopped.
        """
        self.place = place
        self._started = time.time()
        try:
            self._unclean, stopped = _mark(place.root / UNCLEAN)
            if stopped and not lives_on:
                set_apart(place.root, OBJECTS)
            _complete_mark(place.root / UNCLEAN)
            self.folders = Folders(place.root)
            self.index, damaged = open_index(place.root / "lmdb")
        except OSError as error:
            raise StoreError(f"the cache directory {place.root} cannot be written: {error.strerror}") from error
        if damaged:
            log.warning("cache_index_damaged", cache=str(place.root))
            self._unclean = True
        for warning in place.warnings:
            log.warning("cache_place", warning=warning)
        if place.set_aside:
            log.warning("cache_set_aside", cache=str(place.root))
        if floor is None:
            floor = min(_FLOOR_MAX, self.folders.free()[1] // 20)
        self.holdings = Holdings(place.root, self.index, mounted)
        self.tier = DiskTier(self.folders, self.index, log, limit=limit, floor=floor, protection=self.holdings)
        self._idle = IdleThread()
        self.checker = Checker(self.folders, self.index, self.tier, log, idle=self._idle)
        self._log = log

    async def run(self) -> None:
        """Run the tier's task, and beside it what an unclean stop makes necessary. A bug in them ends the tier and nothing else."""
        try:
            async with trio.open_nursery() as nursery:
                if self._unclean:
                    nursery.start_soon(self._set_right)
                if self.folders.suspects:
                    nursery.start_soon(clear_suspects, self.folders, self.tier, self.checker, self._log)
                await self.tier.run()
        except Exception:  # noqa: BLE001 # mounts are served without the disk as well
            self.tier.disable()
            self._log.exception("cache_bug")

    async def _set_right(self) -> None:
        before = self._started
        await trio.to_thread.run_sync(self._sweep_index)
        found = await trio.to_thread.run_sync(lambda: list(unknown_files(self.index, self.place.root, before)))
        adopted = removed = 0
        for name, size, complete in found:
            if complete and await self.checker.look([(name, size)], by="start") == [Verdict.SOUND]:
                self.tier.adopt(name, Row(complete=True, size=size, held=size, used_at=int(before)))
                adopted += 1
            else:
                await trio.to_thread.run_sync(lambda n, c: self.folders.remove(n, complete=c), name, complete)
                removed += 1
            # An idle disk is not what this is for.
            await trio.sleep(_PAUSE)
        if found:
            self._log.warning("cache_set_right", adopted=adopted, removed=removed)

    def _sweep_index(self) -> None:
        """Remove what a fetch of an index left half done."""
        for path in (self.place.root / "index").glob(".*"):
            if path.is_file() and path.stat().st_mtime < self._started:
                path.unlink(missing_ok=True)

    def close(self, *, clean: bool = True) -> None:
        """Close everything; ``clean`` if the tier's task has ended by itself."""
        self._idle.close()
        self.index.close()
        if clean and self.tier.is_sound:
            (self.place.root / UNCLEAN).unlink(missing_ok=True)
        self.place.close()


def _mark(path: Path) -> tuple[bool, bool]:
    """Set the mark. Return whether it was there, and whether, as far as is known, the machine has stopped since it was set. ``OSError``."""
    try:
        boot_id = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        path.touch()
        return False, False
    # Also where the disk does not take writes any more, this has to fail.
    path.touch()
    return True, not boot_id or boot_id != _boot_id()


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _complete_mark(path: Path) -> None:
    """Say in the mark which start of the machine it is of. Without that, on a full disk, the worst is assumed."""
    boot_id = _boot_id()
    with contextlib.suppress(OSError):
        if path.read_text(encoding="ascii", errors="replace") != boot_id:
            path.write_text(boot_id, encoding="ascii")


def unknown_files(index: DiskIndex, root: Path, before: float) -> Iterator[tuple[bytes, int, bool]]:
    """Yield the files older than ``before`` that the index does not know, as (name, size, complete). Blocks."""
    for folder in (OBJECTS, PARTIAL):
        complete = folder != PARTIAL
        for shard in os.scandir(root / folder):
            if not shard.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(shard.path):
                try:
                    name = bytes.fromhex(shard.name + file.name)
                    status = file.stat(follow_symlinks=False)
                except (ValueError, OSError):
                    continue
                row = index.get(name)
                if status.st_mtime < before and (row is None or row.complete != complete):
                    yield name, status.st_size, complete
