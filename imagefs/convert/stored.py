"""Content that the store has already: where a known object map says that it lies, and reading it from there.

What it promises:

- **The same cut.** Only an object that lies in the map as the :class:`~imagefs.convert.builder.ContentBuilder` would cut it counts as
  stored, so frames made of stored objects are the frames that their content would have given.
- **Nothing unverified.** A frame that is read is decoded and hashed, and an object that shares its frame has the digest that is its name.
- **Bounded memory.** One GET, and the frames that are asked for.

A :class:`StoredReader` may be used by any number of threads. What does not live here: which maps are known
(:mod:`imagefs.convert.known`), and what is made of frames.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from imagefs.convert.pieces import FRAME_SIZE, OWN_PACKS_FROM
from imagefs.convert.runs import runs_of
from imagefs.decompressors import Decompressors
from imagefs.digest import Buffer, digest_of
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format.objectmap import HOLE, ObjectMap
from imagefs.format.pack import decode_frame
from imagefs.store.base import BlobSource, ByteRange, pack_key

_GET_MAX: Final = 4 * 1024 * 1024
_GAP: Final = 256 * 1024
"""Bytes that are fetched and dropped rather than ask twice."""


class DoubtError(Exception):
    """What the store seemed to know cannot be used after all: begin again, and read the source."""


class Stored(NamedTuple):
    """``length`` bytes at ``within`` of frame number ``frame`` of a known map. ``name`` is their digest if they are a whole object."""

    objects: ObjectMap
    frame: int
    within: int
    length: int
    name: bytes | None


class StoredObject(NamedTuple):
    """An object that the store has: one part if it is small, else whole frames in order, and a number where so many bytes are a hole."""

    digest: bytes
    size: int
    parts: list[Stored | int]


Part = Buffer | Stored
"""What a frame is put together from."""


def find_stored(objects: ObjectMap, digest: bytes, size: int) -> StoredObject | None:
    """Return where a map has an object, None if it does not, or not as it would be cut today. ``IntegrityError``."""
    row = objects.find(digest)
    if row is None or row.size != size:
        return None
    extents = objects.extents(row, 0, size)
    if size <= FRAME_SIZE:
        _, length, frame, within = extents[0]
        return StoredObject(digest, size, [Stored(objects, frame, within, length, digest)]) if length == size and frame != HOLE else None
    parts: list[Stored | int] = []
    for offset, length, frame, within in extents:
        ends = offset + length == size
        if offset % FRAME_SIZE or not (length == FRAME_SIZE or ends or (frame == HOLE and not length % FRAME_SIZE)):
            return None
        if frame == HOLE and size >= OWN_PACKS_FROM:
            parts.append(length)
        elif frame == HOLE or within or length > FRAME_SIZE or objects.frame(frame).length != length:
            return None
        else:
            parts.append(Stored(objects, frame, 0, length, None))
    return StoredObject(digest, size, parts)


def frame_digest(parts: Sequence[Part]) -> bytes | None:
    """Return the digest of a frame of ``parts``, if a map has a frame of just these; else its content must be looked at."""
    first = parts[0]
    if not isinstance(first, Stored):
        return None
    objects, frame, position = first.objects, first.frame, 0
    for part in parts:
        if not isinstance(part, Stored) or part.frame != frame or part.within != position or part.objects is not objects:
            return None
        position += part.length
    try:
        row = objects.frame(frame)
    except IntegrityError:
        return None
    return row.digest if row.length == position else None


class StoredReader:
    """Reads parts of frames from a store's packs."""

    def __init__(self, store: BlobSource) -> None:
        """Read nothing yet."""
        self._store = store
        self._decompressors = Decompressors()

    def read(self, parts: Iterable[Stored]) -> dict[Stored, bytes]:
        """Return the bytes of ``parts``; each frame that has some of them is read once.

        ``DoubtError`` if one cannot be had, whatever the reason: the source has it.
        """
        wanted: dict[ObjectMap, dict[int, list[Stored]]] = {}
        for part in parts:
            wanted.setdefault(part.objects, {}).setdefault(part.frame, []).append(part)
        found: dict[Stored, bytes] = {}
        try:
            for objects, frames in wanted.items():
                self._read_frames(found, objects, frames)
        except ImageFSError as error:
            raise DoubtError(error.message) from error
        return found

    def _read_frames(self, found: dict[Stored, bytes], objects: ObjectMap, frames: dict[int, list[Stored]]) -> None:
        for run in runs_of(((number, objects.frame(number)) for number in frames), limit=_GET_MAX, gap=_GAP):
            key = pack_key(objects.pack(run.pack).digest.hex())
            data = memoryview(self._store.get(key, ByteRange(run.start, run.end)))
            for number, row in run.frames:
                start = row.offset - run.start
                content = decode_frame(data[start : start + row.stored], row.codec, row.length, row.digest, self._decompressors.own)
                for part in frames[number]:
                    found[part] = _cut_out(content, row.digest, part)


def joined(parts: Sequence[Part], read: Mapping[Stored, bytes]) -> Buffer:
    """Return the content of a frame; ``read`` has its stored parts."""
    pieces = [read[part] if isinstance(part, Stored) else part for part in parts]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _cut_out(content: bytes, digest: bytes, part: Stored) -> bytes:
    """Return a part of a frame, given as its content and digest: a copy, so that the frame is let go of."""
    if part.length < len(content):
        content = content[part.within : part.within + part.length]
        digest = digest_of(content)
    if part.name not in (None, digest):
        raise IntegrityError(f"object {part.name.hex() if part.name else ''} is not where the map has it")
    return content
