"""How the memory of two snapshots differs, page by page, and hardly anything of it is read.

A memory file is compared with the one of the same path. Where both say that their bytes are in the same place of the same frame, they are
equal, and nothing is looked at: that is nearly all of two members of a lineage. Elsewhere the fingerprints of pages tell, which page tables
have; only of frames that no table has, or one that is damaged, the content is read, and verified.

A page that differs from the one at its place may be another one of the first's memory, since files of memory grow in the middle: such a
page has *moved*. It is looked for among pages of which fingerprints are known.

Invariants: a page of zeros that is no hole is like any other; two pages of which the fingerprints agree are taken for equal, as
everywhere (``snapshotstore.fingerprints``); memory is bounded by the tables and an index of ``PAGES_MAX`` pages, and two frames.

What does not live here: the difference of trees (``imagefs.format.difference``) and of records (:func:`record_changes` is but a list).
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
import zstandard

from imagefs.digest import Buffer
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.objectmap import HOLE, FrameRow, ObjectRow
from imagefs.format.pack import decode_frame
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from imagefs.store.images import get_blob
from snapshotstore import manifest
from snapshotstore.contents import File, Index, extents
from snapshotstore.fingerprints import FINGERPRINT_SIZE, FRAME_PAGES, PAGE, PageIndex, decode, fingerprint
from snapshotstore.manifest import Record

_READ_MAX: Final = 2


@dataclass(slots=True)
class Pages:
    """Pages of a memory file in the first snapshot and in the second, which has ``pages``.

    Of those that both have: ``zero`` in both, ``equal``, ``changed``. The others are ``added`` or ``removed``. Of those changed and added,
    ``moved`` are in the first one's memory elsewhere.
    """

    pages: int = 0
    zero: int = 0
    equal: int = 0
    changed: int = 0
    added: int = 0
    removed: int = 0
    moved: int = 0

    @property
    def differ(self) -> bool:
        """Whether a program would notice."""
        return bool(self.changed or self.added or self.removed)


class Run(NamedTuple):
    """Pages ``start`` to ``end`` (exclusive) of a file: zeros, or what begins at byte ``offset`` of frame number ``frame``."""

    start: int
    end: int
    frame: int
    offset: int
    size: int
    """Bytes, which are fewer than those pages have where the last one ends the file."""

    def cut(self, start: int, end: int) -> "Run":
        """Return what of it lies between two pages."""
        skipped = (start - self.start) * PAGE
        size = min(self.size - skipped, (end - start) * PAGE)
        return Run(start, end, self.frame, 0 if self.frame == HOLE else self.offset + skipped, size)


@dataclass(slots=True)
class Side:
    """One of the two: its index, and what has been looked at of its pages."""

    store: ObjectStore
    index: Index
    _tables: dict[bytes, Buffer] | None = None
    _read: "OrderedDict[int, bytes]" = field(default_factory=OrderedDict)

    def runs(self, row: ObjectRow) -> Iterator[Run]:
        """Yield the runs of a memory file. ``IntegrityError`` where it is not cut by pages."""
        for offset, length, frame, frame_offset in extents(self.index.objects, row):
            if offset % PAGE or (length % PAGE and offset + length != row.size):
                raise IntegrityError(f"object {row.digest.hex()} is not cut by pages, as memory is")
            yield Run(offset // PAGE, -(-(offset + length) // PAGE), frame, frame_offset, length)

    def place(self, run: Run) -> tuple[bytes, int]:
        """Return what names the place of a run, whichever snapshot's it is."""
        return self.index.objects.frame(run.frame).digest, run.offset

    def known(self, run: Run) -> Buffer | None:
        """Return the fingerprints of a run's pages as a page table has them; None if there is none that has all."""
        if self._tables is None:
            self._tables = self._load()
        prints = self._tables.get(self.index.objects.frame(run.frame).digest)
        if prints is None or run.offset % PAGE or run.size % PAGE:
            return None
        first = run.offset // PAGE * FINGERPRINT_SIZE
        found = memoryview(prints)[first : first + (run.end - run.start) * FINGERPRINT_SIZE]
        return found if len(found) == (run.end - run.start) * FINGERPRINT_SIZE else None

    def prints(self, run: Run) -> Buffer:
        """Return the fingerprints of a run's pages, from content if it must be; that of a last page, which is shorter, is of its bytes."""
        found = self.known(run)
        if found is not None:
            return found
        content = self._content(run.frame)[run.offset : run.offset + run.size]
        return b"".join(fingerprint(content[at : at + PAGE]) for at in range(0, run.size, PAGE))

    def _load(self) -> dict[bytes, Buffer]:
        """Read the page tables. What is damaged or gone costs reading content, and nothing else."""
        found: dict[bytes, Buffer] = {}
        for blob in manifest.pages_of(self.index.snapshot.manifest.annotations):
            try:
                table = decode(get_blob(self.store, blob.digest, blob.size))
            except ImageFSError as error:
                if error.retryable:
                    raise
                continue
            frames = chain.from_iterable(pack.frames for pack in table.packs)
            found |= {frame.digest: prints for frame, prints in zip(frames, table.prints, strict=True)}
        return found

    def _content(self, number: int) -> bytes:
        """Return a frame, verified. ``IntegrityError``, ``NotFoundError``."""
        held = self._read.get(number)
        if held is None:
            row: FrameRow = self.index.objects.frame(number)
            key = pack_key(self.index.objects.pack(row.pack).digest.hex())
            stored = self.store.get(key, ByteRange(row.offset, row.offset + row.stored))
            held = decode_frame(stored, row.codec, row.length, row.digest, zstandard.ZstdDecompressor())
            self._read[number] = held
            if len(self._read) > _READ_MAX:
                self._read.popitem(last=False)
        return held


def compare(first: Side, second: Side, files: list[tuple[File, File]]) -> list[Pages]:
    """Compare memory files, each pair of one path; return what came of each."""
    rows = [(_row(first, one), _row(second, other)) for one, other in files]
    elsewhere = _Elsewhere(first, [row for row, _ in rows])
    return [_compare(first, second, pair, elsewhere) for pair in rows]


def _row(side: Side, file: File) -> ObjectRow:
    row = None if file.object is None else side.index.objects.find(file.object)
    if row is None:
        raise IntegrityError(f"the object map has no {file.path}")
    return row


def _compare(first: Side, second: Side, pair: tuple[ObjectRow, ObjectRow], elsewhere: "_Elsewhere") -> Pages:
    found = Pages(pages=-(-pair[1].size // PAGE))
    for one, other in _side_by_side(first.runs(pair[0]), second.runs(pair[1])):
        if other is None:
            assert one is not None  # of two runs there is one
            found.removed += one.end - one.start
        elif one is None:
            found.added += other.end - other.start
            found.moved += elsewhere.count(second, other)
        elif one.frame == HOLE and other.frame == HOLE and one.size == other.size:
            found.zero += other.end - other.start
        elif HOLE not in {one.frame, other.frame} and one.size == other.size and first.place(one) == second.place(other):
            found.equal += other.end - other.start
        elif HOLE in {one.frame, other.frame}:
            found.changed += other.end - other.start
            found.moved += elsewhere.count(second, other)
        else:
            _by_prints(first, second, (one, other), elsewhere, found)
    return found


def _by_prints(first: Side, second: Side, runs: tuple[Run, Run], elsewhere: "_Elsewhere", found: Pages) -> None:
    """Compare two runs of as many pages by their fingerprints."""
    one, other = runs
    before, after = bytes(first.prints(one)), bytes(second.prints(other))
    for number in range(other.end - other.start):
        at = number * FINGERPRINT_SIZE
        name = after[at : at + FINGERPRINT_SIZE]
        if before[at : at + FINGERPRINT_SIZE] == name:
            found.equal += 1
        else:
            found.changed += 1
            found.moved += elsewhere.has(name)


def _side_by_side(first: Iterator[Run], second: Iterator[Run]) -> Iterator[tuple[Run | None, Run | None]]:
    """Yield runs of two files by pairs of equal pages; None where one file has ended."""
    one, other = next(first, None), next(second, None)
    while one is not None or other is not None:
        if one is None or other is None:
            yield one, other
            one, other = next(first, None), next(second, None)
            continue
        end = min(one.end, other.end)
        yield one.cut(one.start, end), other.cut(other.start, end)
        one = next(first, None) if one.end == end else one.cut(end, one.end)
        other = next(second, None) if other.end == end else other.cut(end, other.end)


class _Elsewhere:
    """The pages of the first snapshot's memory, as far as their fingerprints are known without reading. Made when it is first asked."""

    def __init__(self, side: Side, rows: list[ObjectRow]) -> None:
        self._side = side
        self._rows = rows
        self._index: PageIndex | None = None

    def has(self, name: bytes) -> bool:
        if self._index is None:
            self._index = self._load()
        return self._index.find(name) >= 0

    def count(self, side: Side, run: Run) -> int:
        """Count the pages of a run that are there."""
        prints = None if run.frame == HOLE else side.known(run)
        if prints is None:
            return 0
        names = bytes(prints)
        return sum(self.has(names[at : at + FINGERPRINT_SIZE]) for at in range(0, len(names), FINGERPRINT_SIZE))

    def _load(self) -> PageIndex:
        index = PageIndex()
        whole = FRAME_PAGES * FINGERPRINT_SIZE
        held = bytearray()
        for row in self._rows:
            for run in self._side.runs(row):
                if run.frame != HOLE and (prints := self._side.known(run)) is not None:
                    held += prints
                while len(held) >= whole:
                    index.add_frame(bytes(held[:whole]))
                    del held[:whole]
        index.add_frame(bytes(held))
        return index


def record_changes(before: Record, after: Record) -> dict[str, list[Any]]:
    """Return what differs of two records: before and after, by the field's name with those of its parts, as ``cpu.arch``."""
    one, other = (_flat(msgspec.to_builtins(record)) for record in (before, after))
    names = sorted(one.keys() | other.keys())
    return {name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)}


def _flat(document: dict[str, Any], start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{start}{name}.")
        else:
            found[start + name] = list(value) if isinstance(value, tuple) else value
    return found
