"""Where the bytes of an object lie in slabs.

A read is answered from *parts*: runs of one slab each. Three shapes:

- an object that lies in one frame, whole or with others: the slab is that frame, named by the frame's digest; or, where SSD has the object
  and RAM does not have the frame, the object alone, named by its own;
- a window of ``WINDOW`` bytes of a larger object, cut into whole frames of whole pages: the slab is the window, named by the digest of its
  frames' digests;
- anything else (pieces of shared frames, frames that straddle a window): one part an extent, each in its frame's slab.

Which shape applies is a pure function of the object map, so images that share an object share its slabs. A slab's name settles its bytes:
an image whose map lies about an object has slabs of its own, and no other image is shown them.

No question takes long, whatever the map says: of a window as many extents are looked at as it has pages, of a range that is no window
those of its bytes, ``EXTENTS_MAX`` at most.

Each part also says where its slab lies in a file of the SSD tier. A frame that several objects share lies in none: there it is a file an
object. What does not live here: fetching.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from imagefs.cache.counters import Tally
from imagefs.cache.members import Members
from imagefs.cache.neighbours import Neighbours
from imagefs.cache.ram import RamCache
from imagefs.cache.readahead import Readahead
from imagefs.cache.slab import SLAB_MAX, Slab
from imagefs.cache.starts import Start
from imagefs.digest import DIGEST_SIZE, digest_of
from imagefs.errors import LimitError
from imagefs.format.objectmap import HOLE, Extent, FrameRow, ObjectMap, ObjectRow

WINDOW: Final = SLAB_MAX
"""Bytes of a window: what the kernel reads ahead, so that nearly every request lies in one slab."""

COUNT_MAX: Final = 16384
"""Extents that are looked at for one question about a whole object."""

EXTENTS_MAX: Final = 4096
"""Fewer extents than this may make up what is read at once: it takes some milliseconds. Where more do, the kernel still gets single pages.

What this project converts is cut at multiples of 256 KiB, and has one extent a read, or few.
"""

_PAGE: Final = 4096
_WINDOWS_MAX: Final = 256
_HOLE: Final = bytes(DIGEST_SIZE)
_ZEROS: Final = memoryview(bytes(1024 * 1024))


class Lookup(Protocol):
    """What is needed of an image: its manifest's hex digest, and its object map."""

    @property
    def name(self) -> str:
        """The manifest's hex digest."""

    @property
    def objects(self) -> ObjectMap:
        """The object map."""

    @property
    def neighbours(self) -> Neighbours:
        """What lies near what in it."""

    @property
    def members(self) -> Members:
        """Which small objects lie in which frame of it."""


class Window(NamedTuple):
    """A window that is cut into whole frames: the name of its slab, its pieces' limits in bytes, and the frames that they are."""

    name: bytes
    bounds: tuple[int, ...]
    frames: tuple[int, ...]


class ObjectRecord:
    """An object that is being read: a cache of what the image says about it, and how far it was read (for reading ahead).

    ``is_small``: it shares its frame with others. ``tally`` is what is read of it added to; ``starts`` are those that want to hear of
    reads, which are then ``opener``'s, a thread.
    """

    __slots__ = ("_single", "_windows", "ahead", "digest", "is_small", "lookup", "opener", "row", "size", "starts", "tally")

    def __init__(self, lookup: Lookup, row: ObjectRow) -> None:
        """``row`` is of ``lookup``'s object map."""
        self.lookup = lookup
        self.row = row
        self.digest = row.digest
        self.size = row.size
        self.ahead = Readahead()
        self.tally = Tally()
        self.starts: tuple[Start, ...] = ()
        self.opener = 0
        # By number; None where the object is not cut into one.
        self._windows: dict[int, Window | None] = {}
        self._single: tuple[bytes, int] | None = None
        self.is_small = False
        if row.extent_count == 1 and row.size:
            extent = lookup.objects.extents(row, 0, row.size)[0]
            if extent.frame != HOLE:
                frame = lookup.objects.frame(extent.frame)
                self._single = (_frame_key(frame), -extent.frame_offset)
                self.is_small = frame.length != row.size

    def frame_count(self) -> int:
        """Count the frames that hold the object's bytes; past ``COUNT_MAX`` extents holes count too, because counting has to end."""
        if self.row.extent_count > COUNT_MAX:
            return self.row.extent_count
        return len({extent.frame for extent in self.lookup.objects.extents(self.row, 0, self.size)} - {HOLE})

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges that need no bytes; none past ``COUNT_MAX`` extents, because looking has to end."""
        if self.row.extent_count <= COUNT_MAX:
            for offset, length, frame, _ in self.lookup.objects.extents(self.row, 0, self.size):
                if frame == HOLE:
                    yield offset, offset + length

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges (end exclusive) that are no holes, extent by extent; none past ``COUNT_MAX`` extents."""
        if self.row.extent_count <= COUNT_MAX:
            for offset, length, frame, _ in self.lookup.objects.extents(self.row, 0, self.size):
                if frame != HOLE:
                    yield offset, offset + length

    def lies_in(self, slab: bytes, base: int) -> None:
        """Note in which slab the object, which lies in one frame, is now, and which byte of the object that would begin with."""
        if self._single is not None:
            self._single = slab, base

    def slab_at(self, offset: int) -> tuple[bytes | None, int]:
        """Return the name of the slab that would hold byte ``offset``, and which byte of the object it would begin with.

        None where no part was made there before: the way of a read that is not warm makes it known.
        """
        if self._single is not None:
            return self._single
        number = offset // WINDOW
        window = self._windows.get(number)
        return (None if window is None else window.name), number * WINDOW

    def window(self, base: int) -> Window | None:
        """Return the window that begins at byte ``base``; None if the object is not cut into one there."""
        number = base // WINDOW
        if number in self._windows:
            return self._windows[number]
        found = _window(self.lookup.objects, self.row, base)
        if len(self._windows) >= _WINDOWS_MAX:
            self._windows.clear()
        self._windows[number] = found
        return found


@dataclass(slots=True)
class Part:
    """Bytes ``start`` to ``stop`` (exclusive) of a slab; zeros if it has none. ``frames`` maps its pieces to frames.

    On SSD, the slab begins at byte ``base`` of the object ``name``, which has ``size`` bytes; it has no name if several objects share it.
    A slab that is one of the objects of a frame begins at byte ``within`` of that frame, and is verified as that object.
    """

    slab: Slab | None
    start: int
    stop: int
    record: ObjectRecord
    frames: tuple[int, ...] | range = ()
    zeros: bool = False
    name: bytes = b""
    size: int = 0
    base: int = 0
    within: int | None = None

    def frame(self, piece: int) -> FrameRow:
        """Return the frame that a piece of the slab is."""
        return self.record.lookup.objects.frame(self.frames[piece])

    def holes(self) -> Iterator[tuple[int, int]]:
        """Yield what of the file needs no bytes."""
        return self.record.holes() if self.name == self.record.digest else iter(())

    def digest(self, frame: FrameRow) -> bytes:
        """Return the digest of a piece that is ``frame``, or of the object that it is of that."""
        return frame.digest if self.within is None else self.record.digest

    def view(self) -> memoryview:
        """Return the bytes, which must be there."""
        if self.slab is not None:
            return self.slab.view[self.start : self.stop]
        count = self.stop - self.start
        return _ZEROS[:count] if count <= len(_ZEROS) else memoryview(bytes(count))


def parts_of(
    record: ObjectRecord,
    offset: int,
    end: int,
    ram: RamCache,
    *,
    create: bool = True,
    is_local: Callable[[ObjectRecord], bool] | None = None,
) -> list[Part]:
    """Return the parts that make up bytes ``offset`` to ``end`` of an object, in order. Slabs that are not there are made if ``create``.

    ``is_local`` says whether SSD has an object.
    """
    parts: list[Part] = []
    try:
        if record.is_small and is_local is not None:
            parts.append(_small_part(record, offset, end, ram, create=create, is_local=is_local))
        else:
            _cut(parts, record, offset, end, ram, create=create)
    except BaseException:
        for part in parts:
            if part.slab is not None:
                ram.discard(part.slab)
        raise
    return parts


def _cut(parts: list[Part], record: ObjectRecord, offset: int, end: int, ram: RamCache, *, create: bool) -> None:
    position = offset
    while position < end:
        base = position // WINDOW * WINDOW
        stop = min(end, base + WINDOW)
        window = record.window(base)
        if window is None:
            extents = record.lookup.objects.extents(record.row, position, stop, most=EXTENTS_MAX)
            if len(parts) + len(extents) >= EXTENTS_MAX:
                raise LimitError(f"object {record.digest.hex()}: {EXTENTS_MAX} extents or more make up what is read at once")
            _add_extents(parts, record, extents, (position, stop), ram, create=create)
        else:
            parts.append(_window_part(record, window, base, (position, stop), ram, create=create))
        position = stop


def frame_part(lookup: Lookup, number: int, ram: RamCache) -> Part:
    """Return the part that is frame ``number``, of small objects. Its slab is made if it is not there."""
    row = lookup.objects.frame(number)
    # A frame that is all of an object has its digest.
    found = lookup.objects.find(row.digest)
    is_whole = found is not None and found.size == row.length
    record = ObjectRecord(lookup, found or ObjectRow(row.digest, row.length, 0, 0))
    slab = _frame_slab(row, ram, create=True)
    return Part(slab, 0, row.length, record, (number,), name=row.digest if is_whole else b"", size=row.length)


def _window(objects: ObjectMap, row: ObjectRow, base: int) -> Window | None:
    """Return the window at ``base`` if it is at least two whole frames or holes that begin and end with it, and not all of them holes.

    Where two meet, a page begins: so a window has no more of them than pages, and what of it is there takes the memory that it counts for.
    """
    extents = objects.extents(row, base, base + WINDOW, most=WINDOW // _PAGE)
    last = extents[-1]
    if len(extents) < 2 or extents[0].offset != base or last.offset + last.length != min(base + WINDOW, row.size):
        return None
    names: list[bytes] = []
    data = False
    for offset, length, frame, frame_offset in extents:
        digest = _HOLE  # nothing hashes to that
        if frame != HOLE:
            frame_row = objects.frame(frame)
            if frame_offset or frame_row.length != length:
                return None
            digest = frame_row.digest
            data = True
        if offset % _PAGE:
            return None
        # Lengths are in the name, or who lies about them would set the bounds for others.
        names.append(length.to_bytes(8, "little") + digest)
    bounds = (*(extent.offset - base for extent in extents), last.offset + last.length - base)
    return Window(b"w" + digest_of(b"".join(names)), bounds, tuple(extent.frame for extent in extents)) if data else None


def _window_part(record: ObjectRecord, window: Window, base: int, span: tuple[int, int], ram: RamCache, *, create: bool) -> Part:
    """Return bytes ``span`` (end exclusive) of an object, which lie in the window that begins at ``base``."""
    slab = ram.get(window.name)
    if slab is None and create:
        slab = Slab(window.name, window.bounds)
        for piece, frame in enumerate(window.frames):
            if frame == HOLE:
                slab.set_ready(piece, saved=True)
        # Untouched pages of a new mapping read as zeros and take no memory.
        slab.landed = 0
        ram.add(slab)
    return Part(slab, span[0] - base, span[1] - base, record, window.frames, name=record.digest, size=record.size, base=base)


def _add_extents(
    parts: list[Part], record: ObjectRecord, extents: list[Extent], span: tuple[int, int], ram: RamCache, *, create: bool
) -> None:
    start, stop = span
    for offset, length, frame, frame_offset in extents:
        first, last = max(offset, start), min(offset + length, stop)
        if first >= last:
            continue
        if frame == HOLE:
            parts.append(Part(None, 0, last - first, record, zeros=True))
            continue
        row = record.lookup.objects.frame(frame)
        slab = _frame_slab(row, ram, create=create)
        shift = frame_offset - offset
        part = Part(slab, first + shift, last + shift, record, (frame,))
        if not frame_offset and row.length == length:
            part.name, part.size, part.base = record.digest, record.size, offset
        elif not record.is_small:
            # Pages of any number of snapshots: SSD has the frame, once, as what it is: an object of that digest.
            part.name, part.size = row.digest, row.length
        parts.append(part)


def _small_part(
    record: ObjectRecord, offset: int, end: int, ram: RamCache, *, create: bool, is_local: Callable[[ObjectRecord], bool]
) -> Part:
    """Return bytes ``offset`` to ``end`` (exclusive) of an object that shares its frame with others."""
    extent = record.lookup.objects.extents(record.row, 0, record.size)[0]
    frame, key = record.lookup.objects.frame(extent.frame), _object_key(record)
    own = ram.get(key)
    if own is None and (ram.get(_frame_key(frame)) is not None or not is_local(record)):
        record.lies_in(_frame_key(frame), -extent.frame_offset)
        shift = extent.frame_offset
        return Part(_frame_slab(frame, ram, create=create), offset + shift, end + shift, record, (extent.frame,))
    record.lies_in(key, 0)
    if own is None and create:
        own = Slab(key, (0, record.size))
        ram.add(own)
    return Part(own, offset, end, record, (extent.frame,), name=record.digest, size=record.size, within=extent.frame_offset)


def _object_key(record: ObjectRecord) -> bytes:
    """Return the name of the slab of an object that SSD has apart: its bytes are verified by that digest, whatever an image says."""
    return b"o" + record.size.to_bytes(8, "little") + record.digest


def _frame_key(row: FrameRow) -> bytes:
    """Return the name of a frame's slab: it cannot be a window's, whatever the frame holds, and settles the length."""
    return b"f" + row.length.to_bytes(8, "little") + row.digest


def _frame_slab(row: FrameRow, ram: RamCache, *, create: bool) -> Slab | None:
    key = _frame_key(row)
    slab = ram.get(key)
    if slab is None and create:
        slab = Slab(key, (0, row.length))
        ram.add(slab)
    return slab
