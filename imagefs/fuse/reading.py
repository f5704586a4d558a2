"""From an open file's handle to its bytes.

A handle is the file's nodeid. What is kept of a file that is read is a cache, bounded and made again from the nodeid when it is missed:
so a handle given by another process, or one whose record was pushed out, works like any other.

While a Start runs, the records of what it wants to hear of have it, and each open is looked at.
"""

from collections.abc import Coroutine
from typing import Any, Final

from imagefs.cache.counters import ReadCounters
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import ObjectRecord
from imagefs.cache.starts import Start, Starts
from imagefs.digest import Buffer, digest_of
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.objectmap import ObjectRow
from imagefs.fuse.forest import OBJECT_BIT, SLOT_SHIFT, Slot
from imagefs.fuse.readers import Readers

_RECORDS_MAX: Final = 4096


class Reading:
    """Reads files of slots. Belongs to the trio thread."""

    __slots__ = ("_counters", "_fetcher", "_records", "readers", "starts")

    def __init__(self, fetcher: Fetcher, counters: ReadCounters, readers: Readers | None = None, starts: Starts | None = None) -> None:
        """``counters`` and ``starts`` are the ones that ``fetcher`` has; ``readers`` knows who reads."""
        self._fetcher = fetcher
        self._counters = counters
        self._records: dict[int, ObjectRecord | bytes] = {}
        self.starts = starts or Starts()
        self.readers = readers or Readers()
        self.readers.follow(self._records)

    def known(self, node: int) -> ObjectRecord | bytes | None:
        """Return what is kept of a file, if anything."""
        return self._records.get(node)

    def record(self, node: int, slot: Slot, nid: int) -> ObjectRecord | bytes:
        """Return the object of a file, or its content if that is in the tree. ``IntegrityError`` if tree and object map disagree."""
        record = self._records.get(node)
        if record is None:
            record = _find(slot, nid)
            self._keep(node, record)
        return record

    def object(self, node: int, slot: Slot, row: ObjectRow) -> ObjectRecord:
        """Return what is to be kept of an object, which is found in an image."""
        record = ObjectRecord(slot.image, row)
        self._keep(node, record)
        return record

    def _keep(self, node: int, record: ObjectRecord | bytes) -> None:
        if len(self._records) >= _RECORDS_MAX:
            del self._records[next(iter(self._records))]
        if isinstance(record, ObjectRecord):
            record.tally = self.readers.tally(node, record.lookup.name)
            if self.starts.running:
                record.starts = self._hearing(node, record)
                record.opener = self.readers.opener(node)
        self._records[node] = record

    def read(self, record: ObjectRecord | bytes, offset: int, size: int) -> Buffer | Coroutine[Any, Any, Buffer]:
        """Return ``size`` bytes from ``offset`` on, fewer only at the end of the file; a coroutine for them if they have to be fetched."""
        if isinstance(record, bytes):
            data = record[offset : offset + size]
            self._counters.tree_bytes += len(data)
            return data
        end = min(offset + size, record.size)
        if offset >= end:
            return b""
        view = self._fetcher.cached(record, offset, end)
        return self._fetcher.read(record, offset, end) if view is None else view

    def is_native(self, record: ObjectRecord) -> bool:
        """Say whether who opens an object here could have it from the kernel."""
        return self._fetcher.is_native(record)

    def attribute(self, record: ObjectRecord | bytes, name: bytes) -> bytes | None:
        """Return what the attribute ``user.imagefs.<name>`` says of a file; None if there is none of that name."""
        if name == b"object":
            return (record.digest if isinstance(record, ObjectRecord) else digest_of(record)).hex().encode()
        if name == b"tier":
            return self._fetcher.tier_of(record).encode() if isinstance(record, ObjectRecord) else b"tree"
        if name == b"frames":
            return str(record.frame_count() if isinstance(record, ObjectRecord) else 0).encode()
        return None

    # -- while a Start runs ------------------------------------------------------------------------------------------------------------

    def begin(self, start: Start) -> None:
        """Have a Start hear of what happens from now on."""
        self.starts.begin(start)
        self._hear()

    def end(self, start: Start) -> None:
        """Have a Start hear of nothing more."""
        self.starts.end(start)
        self._hear()

    def _hear(self) -> None:
        for node, record in self._records.items():
            if isinstance(record, ObjectRecord):
                record.starts = self._hearing(node, record)
                record.opener = self.readers.opener(node)

    def _hearing(self, node: int, record: ObjectRecord) -> tuple[Start, ...]:
        starts = self.starts
        return starts.of_object(record.digest) if node & OBJECT_BIT else starts.of_image(record.lookup.name)

    def opened(self, node: int, slot: Slot, nid: int, thread: int) -> None:
        """Have Starts hear of an open of a file of an image."""
        try:
            record = self.record(node, slot, nid)
        except ImageFSError:
            # Who reads it will be told.
            return
        if isinstance(record, bytes):
            for start in self.starts.of_image(slot.image.name):
                start.opened(start.file(nid, len(record)), thread, native=False)
            return
        record.starts = self.starts.of_image(slot.image.name)
        record.opener = thread
        for start in record.starts:
            start.opened(start.file(record.digest, record.size, nid), thread, native=False, unseen=start.late)

    def opened_object(self, record: ObjectRecord, thread: int, *, again: bool) -> None:
        """Have Starts hear of an open of an object; ``again``: the kernel may have some of its content already."""
        record.starts = self.starts.of_object(record.digest)
        record.opener = thread
        for start in record.starts:
            file = start.file(record.digest, record.size)
            if start.facts.watched:
                start.asked(file, thread, unseen=again or start.late)
            else:
                start.opened(file, thread, native=False, unseen=again or start.late)

    def forget(self, slot: Slot) -> None:
        """Drop what is kept of an image's files."""
        for node, record in list(self._records.items()):
            if node >> SLOT_SHIFT == slot.number or (isinstance(record, ObjectRecord) and record.lookup is slot.image):
                del self._records[node]
        self.readers.forget(slot.image.name)


def _find(slot: Slot, nid: int) -> ObjectRecord | bytes:
    digest = slot.tree.object_of(nid)
    if digest is None:
        return slot.tree.inline(nid)
    row = slot.image.objects.find(digest)
    if row is None:
        raise IntegrityError(f"image {slot.image.name}: object {digest.hex()} is in the tree and not in the object map")
    if row.size != slot.tree.stat(nid).size:
        raise IntegrityError(f"image {slot.image.name}: tree and object map disagree on the size of object {digest.hex()}")
    return ObjectRecord(slot.image, row)
