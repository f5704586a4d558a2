"""The object map: object -> extents -> frames -> packs, one flat table that is read where it lies.

``docs/format/objectmap.md`` is the specification. Everything is little-endian and of fixed size, so a reader finds a row by arithmetic and an
object by binary search. Opening a map builds nothing: it costs the same for one object and for a million.

Invariants: objects are sorted by digest, an object's extents by offset, without gaps or overlaps from 0 to its size; an extent lies
within one frame, or is a hole; the frames of a pack are consecutive. :meth:`ObjectMap.validate` checks all of it; the other methods check what
they touch, so that a damaged map gives ``IntegrityError`` and never a wrong row.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from imagefs.digest import Buffer
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.pack import CODEC_ZSTD, MAX_FRAME, FrameEntry

MAP_MAGIC: Final = b"IFSOMAP\0"
MAP_VERSION: Final = 1

HOLE: Final = 0xFFFF_FFFF
"""The frame number of an extent that is a hole."""

# magic, version, flags, reserved, object count, extent count, frame count, pack count
_HEADER: Final = struct.Struct("<8sHHIIIII32x")
_OBJECT: Final = struct.Struct("<32sQII")
_EXTENT: Final = struct.Struct("<QQII")
_FRAME: Final = struct.Struct("<32sIIQII")
_PACK: Final = struct.Struct("<32s32sQII")


class Extent(NamedTuple):
    """``length`` bytes of an object from ``offset`` on: those of frame number ``frame`` from ``frame_offset`` on, or a ``HOLE``."""

    offset: int
    length: int
    frame: int
    frame_offset: int


class ObjectRow(NamedTuple):
    """An object of ``size`` bytes and where its extents are in the table."""

    digest: bytes
    size: int
    first_extent: int
    extent_count: int


class FrameRow(NamedTuple):
    """A frame: ``offset`` and ``stored`` are its place and size in pack number ``pack``, ``length`` its size uncompressed, in bytes."""

    digest: bytes
    pack: int
    codec: int
    offset: int
    stored: int
    length: int


class PackRow(NamedTuple):
    """A pack of ``size`` bytes; ``key`` names its run of frames (:func:`~imagefs.format.pack.pack_key_of`)."""

    digest: bytes
    key: bytes
    size: int
    first_frame: int
    frame_count: int


class ObjectLike(Protocol):
    """What the writer needs to know of an object."""

    @property
    def digest(self) -> bytes:
        """Raw digest."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def extents(self) -> Sequence[Extent]:
        """In order of offset, without gaps."""


def build_object_map(objects: Iterable[ObjectLike], packs: Sequence[tuple[bytes, bytes, int, Sequence[FrameEntry]]]) -> bytes:
    """Write a map of ``objects`` (sorted by digest) and ``packs``, given as (digest, key, size, frames).

    Frames are numbered through all packs in the order given: that is what the extents' frame numbers mean.
    """
    object_rows: list[bytes] = []
    extent_rows: list[bytes] = []
    for item in objects:
        object_rows.append(_OBJECT.pack(item.digest, item.size, len(extent_rows), len(item.extents)))
        extent_rows += [_EXTENT.pack(*extent) for extent in item.extents]
    frame_rows: list[bytes] = []
    pack_rows: list[bytes] = []
    for number, (digest, key, size, frames) in enumerate(packs):
        pack_rows.append(_PACK.pack(digest, key, size, len(frame_rows), len(frames)))
        frame_rows += [_FRAME.pack(f.digest, number, f.codec, f.offset, f.stored, f.length) for f in frames]
    header = _HEADER.pack(MAP_MAGIC, MAP_VERSION, 0, 0, len(object_rows), len(extent_rows), len(frame_rows), len(pack_rows))
    return b"".join((header, *object_rows, *extent_rows, *frame_rows, *pack_rows))


class ObjectMap:
    """Reads a map in place from any buffer, such as an ``mmap``. Safe from many threads; holds nothing but the buffer."""

    __slots__ = ("_buffer", "_extents", "_frames", "_objects", "_packs", "extent_count", "frame_count", "object_count", "pack_count")

    def __init__(self, buffer: Buffer) -> None:
        """Check the header. ``UnsupportedError`` for another version or an unknown flag, ``IntegrityError`` for anything that is no map."""
        if len(buffer) < _HEADER.size:
            raise IntegrityError("an object map that ends within its header")
        magic, version, flags, _, objects, extents, frames, packs = _HEADER.unpack_from(buffer)
        if magic != MAP_MAGIC:
            raise IntegrityError("not an object map: it does not begin with its magic")
        if version != MAP_VERSION or flags:
            raise UnsupportedError(
                f"object map of version {version} with flags {flags:#x}: this version reads {MAP_VERSION}", hint="update imagefs"
            )
        self.object_count: int = objects
        self.extent_count: int = extents
        self.frame_count: int = frames
        self.pack_count: int = packs
        self._buffer = buffer
        self._objects = _HEADER.size
        self._extents = self._objects + objects * _OBJECT.size
        self._frames = self._extents + extents * _EXTENT.size
        self._packs = self._frames + frames * _FRAME.size
        if len(buffer) != self._packs + packs * _PACK.size:
            raise IntegrityError("an object map whose length is not what its counts say")

    def find(self, digest: bytes) -> ObjectRow | None:
        """Return the row of an object, or None."""
        buffer, base, size = self._buffer, self._objects, _OBJECT.size
        low, high = 0, self.object_count
        while low < high:
            middle = (low + high) >> 1
            at = base + middle * size
            name = bytes(buffer[at : at + 32])
            if name < digest:
                low = middle + 1
            elif name > digest:
                high = middle
            else:
                return ObjectRow(*_OBJECT.unpack_from(buffer, at))
        return None

    def objects(self) -> Iterator[ObjectRow]:
        """Yield every object in digest order."""
        for number in range(self.object_count):
            yield ObjectRow(*_OBJECT.unpack_from(self._buffer, self._objects + number * _OBJECT.size))

    def extents(self, row: ObjectRow, start: int = 0, end: int | None = None) -> list[Extent]:
        """Return the extents that hold bytes ``start`` to ``end`` (exclusive; None: the object's end), in order."""
        end = row.size if end is None else min(end, row.size)
        if row.first_extent + row.extent_count > self.extent_count:
            raise IntegrityError(f"object {row.digest.hex()}: its extents go past the table")
        found: list[Extent] = []
        position = start
        number = self._extent_at(row, start) if start < end else 0
        while position < end:
            if number >= row.extent_count:
                raise IntegrityError(f"object {row.digest.hex()}: no extent holds its byte {position}")
            extent = self._extent(row, number)
            if not extent.offset <= position < extent.offset + extent.length:
                raise IntegrityError(f"object {row.digest.hex()}: its extents have a gap or an overlap at byte {position}")
            found.append(extent)
            position = extent.offset + extent.length
            number += 1
        return found

    def _extent(self, row: ObjectRow, number: int) -> Extent:
        return Extent(*_EXTENT.unpack_from(self._buffer, self._extents + (row.first_extent + number) * _EXTENT.size))

    def _extent_at(self, row: ObjectRow, offset: int) -> int:
        """Return the number of the last extent that starts at or before ``offset``."""
        if row.extent_count <= 1:
            return 0
        # Objects of one frame size: arithmetic finds it at once.
        first = self._extent(row, 0)
        guess = offset // first.length if first.length else 0
        if guess < row.extent_count:
            extent = self._extent(row, guess)
            if extent.offset <= offset < extent.offset + extent.length:
                return guess
        low, high = 0, row.extent_count - 1
        while low < high:
            middle = (low + high + 1) >> 1
            if self._extent(row, middle).offset <= offset:
                low = middle
            else:
                high = middle - 1
        return low

    def frame(self, number: int) -> FrameRow:
        """Return a frame's row."""
        if not 0 <= number < self.frame_count:
            raise IntegrityError(f"an object map names frame {number} of {self.frame_count}")
        return FrameRow(*_FRAME.unpack_from(self._buffer, self._frames + number * _FRAME.size))

    def pack(self, number: int) -> PackRow:
        """Return a pack's row."""
        if not 0 <= number < self.pack_count:
            raise IntegrityError(f"an object map names pack {number} of {self.pack_count}")
        return PackRow(*_PACK.unpack_from(self._buffer, self._packs + number * _PACK.size))

    def validate(self) -> None:
        """Check every row. ``IntegrityError`` says what is wrong."""
        next_frame = 0
        for number in range(self.pack_count):
            pack = self.pack(number)
            if pack.first_frame != next_frame:
                raise IntegrityError(f"pack {pack.digest.hex()}: its frames are not where the pack before it ends")
            next_frame += pack.frame_count
            if next_frame > self.frame_count:
                raise IntegrityError(f"pack {pack.digest.hex()}: its frames go past the table")
            self._validate_frames(number, pack)
        if next_frame != self.frame_count:
            raise IntegrityError("an object map with frames of no pack")
        before = b""
        for row in self.objects():
            if row.digest <= before:
                raise IntegrityError(f"object {row.digest.hex()} is out of order")
            before = row.digest
            for extent in self.extents(row):
                if extent.frame != HOLE and extent.frame_offset + extent.length > self.frame(extent.frame).length:
                    raise IntegrityError(f"object {row.digest.hex()}: an extent goes past its frame")

    def _validate_frames(self, number: int, pack: PackRow) -> None:
        for index in range(pack.first_frame, pack.first_frame + pack.frame_count):
            frame = self.frame(index)
            if frame.pack != number or frame.offset + frame.stored > pack.size:
                raise IntegrityError(f"frame {frame.digest.hex()} is not within its pack")
            if frame.codec > CODEC_ZSTD or not 0 < frame.length <= MAX_FRAME or not 0 < frame.stored <= MAX_FRAME:
                raise IntegrityError(f"frame {frame.digest.hex()} has sizes or a codec that cannot be")
