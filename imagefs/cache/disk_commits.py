"""What makes the SSD tier's changes last: complete files get their places, doomed ones are unlinked, and the index is written.

Invariants: a file gets its place only after it was verified and made durable (``imagefs.cache.disk_files``); one that could not be keeps
its bytes, and the next commit tries again; an entry stays ``dirty`` until the index says what it says, and ``doomed`` until it is unlinked.

Belongs to the trio thread; the work is done in a thread. :meth:`Commits.commit` is called by one task, :meth:`Commits.write_index` by any:
they take turns, or older figures could be written over newer ones.
"""

from dataclasses import dataclass

import trio

from imagefs.cache.disk_entries import Entries, Entry
from imagefs.cache.disk_files import Folders
from imagefs.cache.disk_index import DiskIndex, Figures, Row


@dataclass(slots=True)
class DiskCounters:
    """Figures since the daemon started, in bytes or files."""

    landed_bytes: int = 0
    not_landed_bytes: int = 0
    completed_files: int = 0
    damaged_files: int = 0
    evicted_bytes: int = 0
    evicted_files: int = 0
    write_errors: int = 0


class Commits:
    """Commits what ``entries`` has."""

    def __init__(self, folders: Folders, index: DiskIndex, entries: Entries, counters: DiskCounters, threads: trio.CapacityLimiter) -> None:
        """Start with nothing to do."""
        self._folders = folders
        self._index = index
        self._entries = entries
        self._counters = counters
        self._threads = threads
        self._full: list[Entry] = []
        self._turn = trio.Lock()

    def is_due(self) -> bool:
        """Say whether there is anything to commit."""
        return bool(self._full or self._entries.doomed or self._entries.dirty())

    def add_full(self, entry: Entry) -> None:
        """Say that all bytes of an entry are written: it is ``busy`` until it has its place."""
        entry.busy = True
        self._full.append(entry)

    async def commit(self) -> None:
        """Seal what is complete, unlink what is doomed, and write the index."""
        full, self._full = self._full, []
        sealing = [entry for entry in full if entry.file is not None and not entry.doomed]
        bad: set[bytes] = set()
        try:
            if sealing:
                files = [(entry.kind, entry.name, entry.size, entry.file) for entry in sealing if entry.file is not None]
                bad = set(await trio.to_thread.run_sync(self._folders.seal, files, limiter=self._threads))
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
        await self.write_index()

    async def write_index(self) -> None:
        """Unlink what is doomed, and write the index."""
        async with self._turn:
            await self._write_index()

    async def _write_index(self) -> None:
        going = {name: entry for name, entry in self._entries.doomed.items() if not entry.busy}
        dirty = self._entries.dirty()
        if not (dirty or going):
            return
        rows = [(entry.name, entry.row()) for entry in dirty]
        for entry in dirty:
            entry.dirty = False
        try:
            await trio.to_thread.run_sync(self._commit_index, rows, list(going.values()), self._entries.figures, limiter=self._threads)
        except BaseException:
            for entry in dirty:
                entry.dirty = True
            raise
        for name in going:
            self._entries.doomed.pop(name, None)

    def _commit_index(self, rows: list[tuple[bytes, Row]], going: list[Entry], figures: Figures) -> None:
        for entry in going:
            for complete in (True, False):
                self._folders.remove(entry.kind, entry.name, complete=complete)
        self._index.commit(rows, [entry.name for entry in going], figures)
