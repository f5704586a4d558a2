"""The SSD tier's files that were asked for lately, over the index that knows all of them. Belongs to the trio thread.

An entry that differs from its row is ``dirty`` until the next commit, one that a batch is about is ``busy``, and one that is to be unlinked
is ``doomed``: nobody finds it any more, and until the commit that unlinks it, no new file of that name is begun.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from imagefs.cache.disk_files import Folders, OpenFile
from imagefs.cache.disk_index import DiskIndex, Row
from imagefs.cache.ranges import RangeSet

_ENTRIES_MAX: Final = 4096
_OPEN_MAX: Final = 256
"""Open files, of two descriptors each."""
_USED_STEP: Final = 60
"""Seconds: a use that is not newer by this is not worth a write."""


@dataclass(slots=True, eq=False)
class Entry:
    """One file. ``ranges`` says what of it is there, None for all; ``held`` are its bytes on disk."""

    name: bytes
    size: int
    held: int
    used_at: int
    ranges: RangeSet | None
    file: OpenFile | None = None
    dirty: bool = False
    busy: bool = False
    doomed: bool = False
    damaged: bool = False

    def row(self) -> Row:
        """Return what the index is to say about it."""
        ranges = b"" if self.ranges is None else self.ranges.encode()
        return Row(self.ranges is None, self.size, self.held, self.used_at, ranges)


class Entries:
    """See the module. ``doomed`` are those whose unlinking is due; ``figures`` the sums with all changes, committed or not."""

    def __init__(self, folders: Folders, index: DiskIndex, wall: Callable[[], float] = time.time) -> None:
        """Start with what ``index`` says."""
        self.figures = index.figures
        self.doomed: dict[bytes, Entry] = {}
        self._folders = folders
        self._index = index
        self._wall = wall
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._opened: OrderedDict[bytes, Entry] = OrderedDict()

    def find(self, name: bytes) -> Entry | None:
        """Return a file's entry, None if there is no such file."""
        entry = self._entries.get(name)
        if entry is not None or name in self.doomed:
            return entry
        row = self._index.get(name)
        if row is None:
            return None
        ranges = None
        if not row.complete:
            try:
                ranges = RangeSet.decode(row.ranges)
            except ValueError:
                ranges = RangeSet()
        return self._add(Entry(name, row.size, row.held, row.used_at, ranges))

    def make(self, name: bytes, size: int, ranges: RangeSet) -> Entry:
        """Begin a file that is not there."""
        return self._add(Entry(name, size, 0, int(self._wall()), ranges))

    def adopt(self, name: bytes, row: Row) -> None:
        """Take in a complete file that lies in its place, unless it is known."""
        entry = self.find(name)
        if name in self.doomed or (entry is not None and (entry.ranges is None or entry.busy)):
            return
        if entry is None:
            entry = self._add(Entry(name, row.size, 0, row.used_at, None))
        # One that is known as incomplete was sealed by a daemon that was killed before it could say so.
        self.hold(entry, row.held - entry.held)
        self.completed(entry)

    def _add(self, entry: Entry) -> Entry:
        self._entries[entry.name] = entry
        if len(self._entries) > _ENTRIES_MAX:
            for old in list(self._entries.values())[: _ENTRIES_MAX // 8]:
                if not (old.dirty or old.busy):
                    del self._entries[old.name]
                    self._opened.pop(old.name, None)
        return entry

    def dirty(self) -> list[Entry]:
        """Return the entries that differ from their rows."""
        return [entry for entry in self._entries.values() if entry.dirty]

    def use(self, entry: Entry) -> None:
        """Note that a file was used."""
        now = int(self._wall())
        if now - entry.used_at >= _USED_STEP or now < entry.used_at:
            entry.used_at = now
            entry.dirty = True

    def open(self, entry: Entry) -> OpenFile | None:
        """Return an entry's open file; None if it has gone: then the entry goes too."""
        if entry.file is None:
            entry.file = self._folders.open(entry.name, complete=entry.ranges is None)
            if entry.file is None:
                self.doom(entry)
                return None
            self.opened(entry)
        return entry.file

    def opened(self, entry: Entry) -> None:
        """Note that an entry's file is open, and close those that were opened before the last ``_OPEN_MAX``."""
        self._opened[entry.name] = entry
        for old in list(self._opened.values())[: max(0, len(self._opened) - _OPEN_MAX)]:
            if not old.busy:
                old.file = None
                del self._opened[old.name]

    def hold(self, entry: Entry, count: int) -> None:
        """Count ``count`` bytes more (or less) on the disk."""
        entry.held += count
        entry.dirty = True
        self.figures = self.figures._replace(held=max(0, self.figures.held + count))

    def completed(self, entry: Entry) -> None:
        """Note that a file is whole and in its place."""
        entry.ranges = None
        entry.dirty = True
        # The descriptor was one for writing.
        entry.file = None
        self._opened.pop(entry.name, None)
        self.figures = self.figures._replace(complete=self.figures.complete + 1)

    def doom(self, entry: Entry, *, damaged: bool = False) -> None:
        """Let go of a file; ``damaged``: the kernel may have been served bytes of it that are wrong."""
        if entry.doomed:
            return
        entry.doomed = True
        entry.damaged = damaged
        self._entries.pop(entry.name, None)
        self._opened.pop(entry.name, None)
        self.doomed[entry.name] = entry
        figures = self.figures
        complete = figures.complete - (entry.ranges is None)
        self.figures = figures._replace(held=max(0, figures.held - entry.held), complete=max(0, complete))
