"""What makes the SSD tier's changes last: complete files get their places, doomed ones are unlinked, and the index is written.

Invariants: a file gets its place only after it was verified and made durable (``imagefs.cache.disk_files``); one that could not be keeps
its bytes, and the next commit tries again; an entry stays ``dirty`` until the index says what it says, and ``doomed`` until it is unlinked.

Belongs to the trio thread; the work is done in a thread. :meth:`Commits.commit` is called by one task, :meth:`Commits.write_index` by any:
they take turns, or older figures could be written over newer ones.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from imagefs.cache.disk_entries import Entries, Entry
from imagefs.cache.disk_files import Folders
from imagefs.cache.disk_index import DiskIndex, Figures, Row
from imagefs.cache.disk_small import SmallFile

_TOLD_MAX: Final = 1024


@dataclass(slots=True)
class DiskCounters:
    """Figures since the daemon started, in bytes or files.

    ``damaged_files`` were not what their name says when they were sealed or checked; ``withdrawn_files`` are those that had been complete,
    whoever found that. ``cleared_files`` were suspects, and are served by the kernel again.
    """

    landed_bytes: int = 0
    not_landed_bytes: int = 0
    completed_files: int = 0
    damaged_files: int = 0
    withdrawn_files: int = 0
    cleared_files: int = 0
    scrubbed_files: int = 0
    scrubbed_bytes: int = 0
    evicted_bytes: int = 0
    evicted_files: int = 0
    write_errors: int = 0


class Commits:
    """Commits what ``entries`` has."""

    def __init__(
        self,
        folders: Folders,
        index: DiskIndex,
        entries: Entries,
        counters: DiskCounters,
        *,
        threads: trio.CapacityLimiter,
        wall: Callable[[], float],
    ) -> None:
        """Start with nothing to do."""
        self._folders = folders
        self._index = index
        self._entries = entries
        self._counters = counters
        self._threads = threads
        self._wall = wall
        self._full: list[Entry] = []
        self._small: dict[bytes, SmallFile] = {}
        self._rows: list[tuple[bytes, Row]] = []
        self._turn = trio.Lock()
        self._tell, self.withdrawn = trio.open_memory_channel[bytes](_TOLD_MAX)
        """The names of those that were complete and found damaged, when they are gone, as far as somebody takes them."""

    def is_due(self) -> bool:
        """Say whether there is anything to commit."""
        return bool(self._full or self._small or self._rows or self._entries.doomed or self._entries.dirty())

    def add_full(self, entry: Entry) -> None:
        """Say that all bytes of an entry are written: it is ``busy`` until it has its place."""
        entry.busy = True
        self._full.append(entry)

    def add_small(self, files: Iterable[SmallFile]) -> None:
        """Say that whole files are written."""
        self._small.update((file.name, file) for file in files)

    def is_taken(self, name: bytes) -> bool:
        """Say whether no file may be begun with this name: a whole one waits for its place, or one is to be unlinked."""
        return name in self._small or name in self._entries.doomed

    async def commit(self) -> None:
        """Seal what is complete, unlink what is doomed, and write the index."""
        full, self._full = self._full, []
        sealing = [entry for entry in full if entry.file is not None and not entry.doomed]
        small = list(self._small.values())
        try:
            bad = await self._seal(sealing, small)
        except OSError:
            # Their bytes can be read as they are; the next commit tries again.
            self._full.extend(sealing)
            raise
        for entry in full:
            entry.busy = False
            if entry.doomed:
                continue
            if entry in sealing and entry.name not in bad:
                self._entries.completed(entry)
                self._counters.completed_files += 1
            else:
                self._counters.damaged_files += 1
                self._entries.doom(entry)
        # What is doomed is unlinked below, whichever file of that name it is by now.
        self._placed([file for file in small if file.name not in bad and file.name not in self._entries.doomed])
        for file in small:
            self._small.pop(file.name, None)
        placed = {*(entry.name for entry in sealing), *(file.name for file in small)} - bad
        if placed and self._folders.has_verity:
            await trio.to_thread.run_sync(self._protect, placed, limiter=self._threads)
        await self.write_index()

    async def _seal(self, sealing: list[Entry], small: list[SmallFile]) -> set[bytes]:
        """Return the names of those that could not be. When this returns, nothing refers to the files that were open for writing."""
        if not (sealing or small):
            return set()
        files = [(entry.name, entry.size, entry.file) for entry in sealing if entry.file is not None]
        names = [file.name for file in small]
        return set(await trio.to_thread.run_sync(self._folders.seal, files, names, limiter=self._threads))

    def _protect(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._folders.protect(name)

    def _placed(self, small: list[SmallFile]) -> None:
        """Note that whole files have their places."""
        now = int(self._wall())
        for file in small:
            self._rows.append((file.name, Row(complete=True, size=file.size, held=file.held, used_at=now)))
        self._counters.completed_files += len(small)
        figures = self._entries.figures
        held = sum(file.held for file in small)
        self._counters.landed_bytes += held
        self._entries.figures = figures._replace(held=figures.held + held, complete=figures.complete + len(small))

    async def write_index(self) -> None:
        """Unlink what is doomed, and write the index."""
        async with self._turn:
            await self._write_index()

    async def _write_index(self) -> None:
        going = {name: entry for name, entry in self._entries.doomed.items() if not entry.busy}
        dirty = self._entries.dirty()
        if not (dirty or going or self._rows):
            return
        placed, self._rows = self._rows, []
        rows = placed + [(entry.name, entry.row()) for entry in dirty]
        for entry in dirty:
            entry.dirty = False
        try:
            await trio.to_thread.run_sync(self._commit_index, rows, list(going.values()), self._entries.figures, limiter=self._threads)
        except BaseException:
            for entry in dirty:
                entry.dirty = True
            self._rows[:0] = placed
            raise
        finally:
            # Whatever became of the index, they are unlinked: who looks for them anew does not find them.
            for entry in going.values():
                if entry.damaged:
                    self._counters.withdrawn_files += 1
                    with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                        self._tell.send_nowait(entry.name)
                entry.damaged = False
        for name in going:
            self._entries.doomed.pop(name, None)

    def _commit_index(self, rows: list[tuple[bytes, Row]], going: list[Entry], figures: Figures) -> None:
        for entry in going:
            for complete in (True, False):
                self._folders.remove(entry.name, complete=complete)
        self._index.commit(rows, [entry.name for entry in going], figures)
