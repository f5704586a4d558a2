"""The object map: object -> extents -> frames -> packs, read in place. The layout is specified in ``docs/format/objectmap.md``.

Invariants:

- opening a map costs the same whatever its size: the header is checked and nothing else is read;
- every row is built when it is asked for, from bytes whose place was bounds-checked: a hostile map gives ``IntegrityError``, never an
  exception of another kind, and never an extent that lies outside its frame;
- a map is a pure function of what it is built from, and there is one way to write it.

An :class:`ObjectMap` holds no state but its buffer: any number of threads may read it at once. What does not live here: verifying the
map's own digest (``imagefs.store.images``), and reading frames.
"""

import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from imagefs.digest import DIGEST_SIZE, Buffer
from imagefs.errors import IntegrityError, LimitError, UnsupportedError
from imagefs.format.pack import CODEC_RAW, CODEC_ZSTD, ENTRY_SIZE, FOOTER_SIZE, MAX_FRAME, FrameEntry

MAP_MAGIC: Final = b"IMFSOMAP"
MAP_VERSION: Final = 1

HOLE: Final = 0xFFFFFFFF
"""The ``frame`` of an extent that has none: its bytes are zeros."""

HEADER_SIZE: Final = 80
OBJECT_SIZE: Final = 48
EXTENT_SIZE: Final = 24
FRAME_SIZE: Final = 56
PACK_SIZE: Final = 80

_HEADER: Final = struct.Struct("<8sII4I4QQQ")
_OBJECT: Final = struct.Struct("<32sQII")
_EXTENT: Final = struct.Struct("<QQII")
_FRAME: Final = struct.Struct("<32sIIQII")
_PACK: Final = struct.Struct("<32s32sQII")
_PREFIX: Final = struct.Struct(">Q24s")
_LENGTH: Final = struct.Struct("<I")
_LENGTH_AT: Final = 52
_OFFSET_MAX: Final = 1 << 56
_GUESSES: Final = 6

MapBuffer = Buffer | mmap.mmap
"""What a map is read from."""


class Extent(NamedTuple):
    """A run of an object's bytes: ``length`` of them at ``offset`` of the object are those at ``frame_offset`` of frame number ``frame``.

    ``frame`` is ``HOLE`` (then ``frame_offset`` is 0) for zeros that are stored nowhere.
    """

    offset: int
    length: int
    frame: int
    frame_offset: int


class ObjectRow(NamedTuple):
    """One object: its raw digest, its size in bytes, and which extents are its own."""

    digest: bytes
    size: int
    first_extent: int
    extent_count: int


class FrameRow(NamedTuple):
    """One frame: the digest of its content, the number of its pack, ``offset`` and ``stored`` bytes there, ``length`` bytes of content."""

    digest: bytes
    pack: int
    offset: int
    stored: int
    length: int
    codec: int


class PackRow(NamedTuple):
    """One pack: its digest, the digest of its frames' digests (``key``), its size in bytes as stored, and which frames are its own."""

    digest: bytes
    key: bytes
    size: int
    first_frame: int
    frame_count: int


class MapObject(Protocol):
    """What :func:`build_object_map` takes: a raw digest, a size in bytes, and extents that cover it in order."""

    @property
    def digest(self) -> bytes:
        """The object's name."""

    @property
    def size(self) -> int:
        """The object's size in bytes."""

    @property
    def extents(self) -> Sequence[Extent]:
        """All of the object, in order."""


def build_object_map(objects: Iterable[MapObject], packs: Sequence[tuple[bytes, bytes, int, Sequence[FrameEntry]]]) -> bytes:
    """Write a map of ``objects``, strictly ascending by digest, and of ``packs``, given as (digest, key, size, frames).

    Frames are numbered from 0 in the order of the packs and their frames; the packs keep their order. ``ValueError`` for rows that do not
    fit together, ``LimitError`` for more than 2^32 - 2 rows of a kind.
    """
    pack_rows: list[bytes] = []
    frame_rows: list[bytes] = []
    lengths = array("Q", [])
    for number, (pack_digest, key, size, frames) in enumerate(packs):
        pack_rows.append(_PACK.pack(pack_digest, key, size, len(lengths), len(frames)))
        for digest, offset, stored, length, codec in frames:
            frame_rows.append(_FRAME.pack(digest, number, codec, offset, stored, length))
            lengths.append(length)
    object_rows: list[bytes] = []
    extent_rows: list[bytes] = []
    pack_object, pack_extent = _OBJECT.pack, _EXTENT.pack
    add_object, add_extent = object_rows.append, extent_rows.append
    before = b""
    for item in objects:
        digest, extents = item.digest, item.extents
        if digest <= before or len(digest) != DIGEST_SIZE:
            raise ValueError("objects are not in order")
        before = digest
        add_object(pack_object(digest, item.size, len(extent_rows), len(extents)))
        position = 0
        for extent in extents:
            offset, length, frame, frame_offset = extent
            if offset != position or length < 1 or (frame_offset if frame == HOLE else frame_offset + length > lengths[frame]):
                raise ValueError(f"object {digest.hex()}: {extent} does not follow, or lies outside its frame")
            add_extent(pack_extent(offset, length, frame, frame_offset))
            position += length
        if position != item.size or not position:
            raise ValueError(f"object {digest.hex()}: extents cover {position} of {item.size} bytes")
    sections = (object_rows, extent_rows, frame_rows, pack_rows)
    counts = [len(rows) for rows in sections]
    if max(counts) >= HOLE:
        raise LimitError("the image has more objects, extents or frames than an object map holds")
    starts = _section_starts(*counts)
    header = _HEADER.pack(MAP_MAGIC, MAP_VERSION, 0, *counts, *starts, 0)
    return b"".join((header, *(b"".join(rows) for rows in sections)))


def _section_starts(objects: int, extents: int, frames: int, packs: int) -> tuple[int, int, int, int, int]:
    """Return where the four sections begin, and where the last one ends, in bytes of the map."""
    extents_at = HEADER_SIZE + objects * OBJECT_SIZE
    frames_at = extents_at + extents * EXTENT_SIZE
    packs_at = frames_at + frames * FRAME_SIZE
    return HEADER_SIZE, extents_at, frames_at, packs_at, packs_at + packs * PACK_SIZE


class ObjectMap:
    """A map read in place from ``buffer``, which it keeps and which nobody changes."""

    __slots__ = (
        "_buffer",
        "_extents_at",
        "_frames_at",
        "_objects_at",
        "_packs_at",
        "extent_count",
        "frame_count",
        "object_count",
        "pack_count",
    )

    def __init__(self, buffer: MapBuffer) -> None:
        """Check the header. ``IntegrityError`` if this is no object map or not all of one, ``UnsupportedError`` for another version."""
        if len(buffer) < HEADER_SIZE:
            raise IntegrityError("object map: shorter than its header")
        magic, version, flags, objects, extents, frames, packs, *starts, reserved = _HEADER.unpack_from(buffer, 0)
        if magic != MAP_MAGIC:
            raise IntegrityError("not an object map")
        if version != MAP_VERSION or flags or reserved:
            raise UnsupportedError(f"object map version {version}, flags {flags:#x}: not known", hint="a newer version of ImageFS wrote it")
        if tuple(starts) != _section_starts(objects, extents, frames, packs) or starts[-1] != len(buffer):
            raise IntegrityError(f"object map: its sections do not fill its {len(buffer)} bytes")
        self._buffer = buffer
        self.object_count: int = objects
        self.extent_count: int = extents
        self.frame_count: int = frames
        self.pack_count: int = packs
        self._objects_at, self._extents_at, self._frames_at, self._packs_at, _ = starts

    def __iter__(self) -> Iterator[ObjectRow]:
        """Yield every object in the order of digests."""
        for index in range(self.object_count):
            yield self.object(index)

    def object_rows(self) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield what :class:`ObjectRow` has of every object in the order of digests, unchecked: for who reads all of a large map."""
        return _OBJECT.iter_unpack(memoryview(self._buffer)[self._objects_at : self._extents_at])

    def extent_rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield what :class:`Extent` has of every extent in the order of the map, unchecked."""
        return _EXTENT.iter_unpack(memoryview(self._buffer)[self._extents_at : self._frames_at])

    def object(self, index: int) -> ObjectRow:
        """Return object number ``index`` in the order of digests."""
        if not 0 <= index < self.object_count:
            raise IntegrityError(f"object map: no object {index}")
        row = ObjectRow._make(_OBJECT.unpack_from(self._buffer, self._objects_at + index * OBJECT_SIZE))
        if row.first_extent + row.extent_count > self.extent_count:
            raise IntegrityError(f"object map: the extents of object {row.digest.hex()} lie outside")
        return row

    def find(self, digest: bytes) -> ObjectRow | None:
        """Return the object with this raw digest, or None."""
        buffer, base = self._buffer, self._objects_at
        unpack = _PREFIX.unpack_from
        wanted = unpack(digest)
        prefix = wanted[0]
        low, high = 0, self.object_count
        low_prefix, high_prefix = 0, 1 << 64
        guesses = _GUESSES
        while low < high:
            # Digests are evenly spread, so where one must be can be computed; a few such guesses do what a dozen halvings would.
            # A map made to defeat them is still halved.
            if guesses and high - low > 8:
                guesses -= 1
                middle = min(low + (prefix - low_prefix) * (high - low) // (high_prefix - low_prefix + 1), high - 1)
            else:
                middle = (low + high) >> 1
            row = unpack(buffer, base + middle * OBJECT_SIZE)
            if row == wanted:
                return self.object(middle)
            if row < wanted:
                low, low_prefix = middle + 1, row[0]
            else:
                high, high_prefix = middle, row[0]
        return None

    def find_by_start(self, start: int) -> list[ObjectRow]:
        """Return the objects whose digests begin with these 63 bits: one, as good as always, or none."""
        buffer, base = self._buffer, self._objects_at
        unpack = _PREFIX.unpack_from
        low, high = 0, self.object_count
        while low < high:
            middle = (low + high) >> 1
            if unpack(buffer, base + middle * OBJECT_SIZE)[0] >> 1 < start:
                low = middle + 1
            else:
                high = middle
        found = []
        while low < self.object_count and unpack(buffer, base + low * OBJECT_SIZE)[0] >> 1 == start:
            found.append(self.object(low))
            low += 1
        return found

    def extents(self, row: ObjectRow, start: int, end: int, *, most: int | None = None) -> list[Extent]:
        """Return the extents that cover bytes ``start`` to ``end`` (exclusive, cut to the object's size) of an object, in order.

        Together they cover the range without a gap, and each lies inside its frame; ``IntegrityError`` if the map says otherwise. Where
        there are more than ``most``, those are not looked at, and not returned.
        """
        digest, size, first, count = row
        end = min(end, size)
        if not 0 <= start < end:
            return []
        buffer, base, frames_at, frame_count = self._buffer, self._extents_at, self._frames_at, self.frame_count
        unpack, make = _EXTENT.unpack_from, Extent._make
        index = 0 if count == 1 else self._find_extent(row, start)
        found: list[Extent] = []
        position = -1
        while index < count:
            extent = make(unpack(buffer, base + (first + index) * EXTENT_SIZE))
            offset, length, frame, frame_offset = extent
            if offset != position and (position >= 0 or offset > start):
                break
            if frame == HOLE:
                if frame_offset:
                    break
            elif (
                frame >= frame_count or frame_offset + length > _LENGTH.unpack_from(buffer, frames_at + frame * FRAME_SIZE + _LENGTH_AT)[0]
            ):
                break
            found.append(extent)
            position = offset + length
            if position >= end or len(found) == most:
                return found
            if position <= start:
                break
            index += 1
        raise IntegrityError(f"object map: the extents of object {digest.hex()} do not cover bytes {start} to {end}")

    def _find_extent(self, row: ObjectRow, start: int) -> int:
        """Return the index, among the object's own, of the last extent that begins at or before ``start``."""
        buffer, unpack = self._buffer, _EXTENT.unpack_from
        base = self._extents_at + row.first_extent * EXTENT_SIZE
        low, high = 0, row.extent_count
        if not high:
            return 0
        # Where all extents but the last are of one length, this is the answer.
        middle = min(start // (unpack(buffer, base)[1] or 1), high - 1)
        while True:
            offset, length, _, _ = unpack(buffer, base + middle * EXTENT_SIZE)
            if offset <= start < offset + length:
                return middle
            if offset > start:
                high = middle
            else:
                low = middle + 1
            if low >= high:
                return max(low - 1, 0)
            middle = (low + high) >> 1

    def frame(self, index: int) -> FrameRow:
        """Return frame number ``index``; it is bounded like any frame, and its pack exists."""
        if not 0 <= index < self.frame_count:
            raise IntegrityError(f"object map: no frame {index}")
        digest, pack, codec, offset, stored, length = _FRAME.unpack_from(self._buffer, self._frames_at + index * FRAME_SIZE)
        if pack >= self.pack_count or not 0 < stored <= length <= MAX_FRAME or offset >= _OFFSET_MAX:
            raise IntegrityError(f"object map: frame {index} has no sound place")
        return FrameRow(digest, pack, offset, stored, length, codec)

    def pack(self, index: int) -> PackRow:
        """Return pack number ``index``; its frames exist."""
        if not 0 <= index < self.pack_count:
            raise IntegrityError(f"object map: no pack {index}")
        row = PackRow._make(_PACK.unpack_from(self._buffer, self._packs_at + index * PACK_SIZE))
        if row.first_frame + row.frame_count > self.frame_count:
            raise IntegrityError(f"object map: the frames of pack {index} lie outside")
        return row

    def owners(self) -> "array[int]":
        """Return for each frame the number of an object with several extents that has it, plus 1; 0 if there is none.

        Reads the rows of all objects. ``IntegrityError``.
        """
        owners = array("I", bytes(4 * self.frame_count))
        extents = memoryview(self._buffer)[self._extents_at : self._frames_at]
        objects = memoryview(self._buffer)[self._objects_at : self._extents_at]
        left = self.extent_count
        for number, (_, _, first, count) in enumerate(_OBJECT.iter_unpack(objects), 1):
            left -= count
            if left < 0:
                raise IntegrityError("object map: objects share extents")
            if count > 1:
                for _, _, frame, _ in _EXTENT.iter_unpack(extents[first * EXTENT_SIZE : (first + count) * EXTENT_SIZE]):
                    if frame < self.frame_count:
                        owners[frame] = number
                    elif frame != HOLE:
                        raise IntegrityError(f"object map: no frame {frame}")
        return owners

    def by_frame(self) -> "tuple[array[int], array[int]]":
        """Return the numbers of the objects with one extent in the order of their frames, and for each frame where its own begin there.

        The second has one more at the end. Reads the rows of all objects; each step is short, for the sake of other threads.
        ``IntegrityError``.
        """
        frames = array("I")
        counts = array("I", bytes(4 * (self.frame_count + 2)))
        objects = memoryview(self._buffer)[self._objects_at : self._extents_at]
        unpack, base, most = _EXTENT.unpack_from, self._extents_at, self.frame_count
        for _, _, first, count in _OBJECT.iter_unpack(objects):
            frame = HOLE
            if count == 1:
                if first >= self.extent_count:
                    raise IntegrityError("object map: extents that are not there")
                frame = unpack(self._buffer, base + first * EXTENT_SIZE)[2]
                if frame != HOLE:
                    if frame >= most:
                        raise IntegrityError(f"object map: no frame {frame}")
                    counts[frame + 2] += 1
            frames.append(frame)
        for frame in range(2, most + 2):
            counts[frame] += counts[frame - 1]
        order = array("I", bytes(4 * counts[-1]))
        # A frame's count is where its next object goes, and in the end where the next frame's begin.
        for number, frame in enumerate(frames):
            if frame != HOLE:
                order[counts[frame + 1]] = number
                counts[frame + 1] += 1
        return order, counts[:-1]

    def validate(self) -> None:
        """Check every row against every other: order, bounds, coverage. Reads the whole map; ``IntegrityError`` for what does not fit."""
        self._validate_packs()
        before = b""
        next_extent = 0
        for row in self:
            if row.digest <= before:
                raise IntegrityError("object map: objects are not in order")
            if row.first_extent != next_extent or not row.extent_count:
                raise IntegrityError(f"object map: the extents of object {row.digest.hex()} are not its own")
            before = row.digest
            next_extent += row.extent_count
            extents = self.extents(row, 0, row.size)
            if len(extents) != row.extent_count or extents[0].offset or sum(extent.length for extent in extents) != row.size:
                raise IntegrityError(f"object map: object {row.digest.hex()} is not covered exactly")
        if next_extent != self.extent_count:
            raise IntegrityError("object map: extents that belong to no object")

    def _validate_packs(self) -> None:
        next_frame = 0
        for number in range(self.pack_count):
            pack = self.pack(number)
            if pack.first_frame != next_frame or not pack.frame_count:
                raise IntegrityError(f"object map: the frames of pack {number} are not its own")
            next_frame += pack.frame_count
            position = 0
            for index in range(pack.first_frame, next_frame):
                frame = self.frame(index)
                if frame.pack != number or frame.offset != position:
                    raise IntegrityError(f"object map: frame {index} is not where its pack has it")
                if frame.codec not in (CODEC_RAW, CODEC_ZSTD):
                    raise UnsupportedError(f"object map: codec {frame.codec} of frame {index} is not known")
                position += frame.stored
            if pack.size != position + pack.frame_count * ENTRY_SIZE + FOOTER_SIZE:
                raise IntegrityError(f"object map: pack {number} does not have its size")
        if next_frame != self.frame_count:
            raise IntegrityError("object map: frames that belong to no pack")
