"""The opens of a mount in kernel mode become those of its Start.

Events are taken every 20 ms while they come, because the kernel finds room for the next one faster when few are waiting, and because they
do not say when they were; and they are looked into when nothing has come for a moment, so that who starts a program does not share the
processors with who watches it. Only who did the first of each lot is told at once: a process may be gone soon.

The directories in which earlier starts have opened something are watched from the beginning, the others as soon as possible: what is opened
in those before that is seen as far as the daemon serves it. Belongs to the trio thread, but for its making. What does not live here: what
the kernel tells (``imagefs.mount.watch``).
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from imagefs.cache.image import Image
from imagefs.cache.starts import Start
from imagefs.daemon.folders import FOLDERS_MAX, KnownFolders, folders
from imagefs.errors import ImageFSError
from imagefs.mount.watch import Watch

_TAKE_SECONDS: Final = 0.02
_IDLE_SECONDS: Final = 0.2
_LATE_SECONDS: Final = 2.0
"""What was taken is looked into when nothing has come for the second, or has waited for the third."""

_SLICE: Final = 64
"""Events that are looked into at once: a millisecond at most, in which no request is answered."""

_HEAD: Final = 128
"""Bytes of a lot that have its first event."""

_FIRST_FOLDERS: Final = 1024
"""Directories that are watched before a mount is answered: 10 ms."""

_NONE: Final = -2
"""In place of a file: the tree has none of that number."""


class WatchedMount:
    """See the module. What was taken and not looked into yet is kept with when it was taken."""

    def __init__(self, target: Path, image: Image, known: KnownFolders) -> None:
        """Watch the image at ``target``. Blocks. ``UnsupportedError`` where that cannot be; ``AccessError``, ``MountError``."""
        self._image = image
        self._watch = Watch(target)
        self._taken: list[tuple[float, bytes]] = []
        self._files: dict[int, int] = {}
        self._own = os.getpid()
        found = known.read(image.name)
        first, rest = found if found is not None else ([], [])
        self._others: Iterator[bytes] = iter((*first[_FIRST_FOLDERS:], *rest))
        if found is None:
            self._others = islice(folders(image.tree), FOLDERS_MAX)
        self._add(first[:_FIRST_FOLDERS])

    def _add(self, paths: list[bytes] | Iterator[bytes]) -> None:
        # One that cannot be watched, for want of memory or because it went, costs what would have been seen of it.
        with suppress(OSError):
            self._watch.add(paths)

    async def close(self) -> None:
        """Watch no longer. After :meth:`run` has returned; in a thread, as the kernel waits for who is opening something: 20 ms."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._watch.close)

    async def run(self, start: Start) -> None:
        """Take events as they come, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_others)
            try:
                await self._take(start)
            finally:
                self._watch.stopping = True

    async def _watch_others(self) -> None:
        # Not left to itself: what it marks with must be open until it has returned.
        await trio.to_thread.run_sync(self._add, self._others)

    async def _take(self, start: Start) -> None:
        watch = self._watch
        while True:
            await trio.lowlevel.wait_readable(watch)
            now = time.monotonic()
            for taken in watch.take():
                self._taken.append((now, taken))
                for opened in watch.opens(taken[:_HEAD]):
                    if opened.pid != self._own:
                        start.came(opened.pid)
            await trio.sleep(_TAKE_SECONDS)

    @property
    def has_more(self) -> bool:
        """Whether something was taken that was not looked into yet."""
        return bool(self._taken)

    async def look_into(self, start: Start, *, whole: bool) -> None:
        """Tell a Start which files were opened, a few at a time: if it is time for that; with ``whole``, all there is."""
        watch, taken = self._watch, self._taken
        now = time.monotonic()
        if whole:
            taken += ((now, more) for more in watch.take())
        elif not taken or (now - taken[-1][0] < _IDLE_SECONDS and now - taken[0][0] < _LATE_SECONDS):
            return
        while taken:
            at, events = taken.pop(0)
            for number, (pid, nid) in enumerate(watch.opens(events), 1):
                file = self._files.get(nid)
                if file is None:
                    file = self._files[nid] = self._file(start, nid)
                if pid != self._own and file != _NONE:
                    start.opened(file, pid, native=True, at=at)
                if not number % _SLICE:
                    await trio.lowlevel.checkpoint()
        start.lose(watch.lost)
        watch.lost = 0

    def _file(self, start: Start, nid: int) -> int:
        tree = self._image.tree
        try:
            size, digest = tree.stat(nid).size, tree.object_of(nid)
        except ImageFSError:
            return _NONE
        return start.file(nid if digest is None else digest, size, nid)
