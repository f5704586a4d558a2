"""Content becomes objects, frames and packs, and goes into the store while the source is still being read.

What it promises:

- **A pure function of the input.** Which frame an object lands in, and where a pack ends, depends on the content and its order
  alone: never on the number of jobs, on timing, or on what the store has. Two machines give the same packs.
- **Boundaries resynchronise.** Small objects share frames and frames share packs, and both end where a digest says so. When a few
  files of an image change, the packs around them change and the others are met again, byte for byte.
- **Nothing is done twice.** An object met twice in one image is kept once. Boundaries need sizes and digests alone, so an object that the
  store has already (:meth:`ContentBuilder.add_stored`) takes its place among the others without its content.

One thread owns a builder and decides all boundaries. What does not live here: making packs of frames, and the threads that do
(:mod:`imagefs.convert.packing`), reading sources, and what the tree looks like.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from imagefs.convert.entry import Content
from imagefs.convert.known import KnownPacks
from imagefs.convert.packing import OWN_PACK_FRAMES, OpenPack, Packer
from imagefs.convert.pieces import FRAME_SIZE, OWN_PACKS_FROM, cut, is_zero, with_holes
from imagefs.convert.stored import Part, Stored, StoredObject
from imagefs.digest import Buffer, Hasher, digest_of
from imagefs.format.objectmap import HOLE, Extent
from imagefs.format.pack import FrameEntry
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ObjectStore

FRAME_MIN: Final = 128 * 1024
"""A frame of small objects ends no earlier than this, but for the end of its pack."""

PACK_MIN: Final = 256 * 1024
PACK_MAX: Final = 2 * 1024 * 1024
"""Bytes of content in a shared pack: it ends between these two where a digest says so, and then at the latest."""

_Slot = tuple[int, int]
"""A frame's place: (pack number, index in that pack)."""

_Place = tuple[int, int, _Slot | None, int]
"""A run of an object: (object offset, length, slot or None for a hole, offset in the frame)."""


@dataclass(frozen=True, slots=True)
class BuiltObject:
    """One object and where its bytes are; frames are numbered over all packs of :class:`Built`."""

    digest: bytes
    size: int
    extents: list[Extent]


@dataclass(frozen=True, slots=True)
class Built:
    """What the object map is made from: the objects in digest order, the packs that hold them in the order they were sealed."""

    objects: list[BuiltObject]
    packs: list[tuple[bytes, bytes, int, list[FrameEntry]]]


class ContentBuilder:
    """Takes the contents of files one after the other and stores them as packs. A context manager: leaving it stops the workers."""

    def __init__(self, store: ObjectStore, known: KnownPacks, *, jobs: int, level: int, written: set[bytes] | None = None) -> None:
        """``jobs`` worker threads compress at zstd ``level``.

        ``written`` is for who may have to begin again: packs that a builder stored before are new to the tally of the next one, which is
        given the same set.
        """
        self._packer = Packer(store, known, jobs=jobs, level=level, written=set() if written is None else written)
        self._pack_count = 0
        self._objects: dict[bytes, tuple[int, tuple[_Place, ...]]] = {}
        self._shared = self._new_pack()
        self._frame: list[Part] | None = None
        self._frame_slot: _Slot = (0, 0)
        self._frame_length = 0
        self.tally = self._packer.tally

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._packer.__exit__()

    # -- adding content -------------------------------------------------------------------------------------------------------------

    def __contains__(self, digest: bytes) -> bool:
        """Say whether an object was added."""
        return digest in self._objects

    def add(self, size: int, pieces: Iterable[Buffer], sparse: list[tuple[int, int]] | None = None) -> Content:
        """Take one file's content and return its name.

        ``pieces`` are the stored bytes in order: all ``size`` of them, or with ``sparse`` the data segments back to back. Raises what
        the pieces raise, the store's errors, also those of packs that were handed in by earlier calls, and ``DoubtError`` for these if
        content was added that only the store has.
        """
        if sparse is not None:
            pieces = with_holes(pieces, sparse, size)
        if size >= OWN_PACKS_FROM:
            return Content(size, self._add_large(size, pieces), None)
        parts = list(pieces)
        data = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        if size <= INLINE_MAX:
            return Content(size, None, data)
        digest = digest_of(data)
        if digest not in self._objects:
            if size <= FRAME_SIZE:
                self._add_small(digest, size, data)
            else:
                view = memoryview(data)
                self._add_medium(digest, size, [view[offset : offset + FRAME_SIZE] for offset in range(0, size, FRAME_SIZE)])
        return Content(size, digest, None)

    def add_stored(self, found: StoredObject) -> Content:
        """Take an object that the store has, as :meth:`add` would take its content. Raises what that raises."""
        digest, size, parts = found
        if digest not in self._objects:
            if size >= OWN_PACKS_FROM:
                self._add_large_stored(found)
            else:
                frames = [part for part in parts if isinstance(part, Stored)]
                if size <= FRAME_SIZE:
                    self._add_small(digest, size, frames[0])
                else:
                    self._add_medium(digest, size, frames)
        return Content(size, digest, None)

    def _add_small(self, digest: bytes, size: int, data: Part) -> None:
        """Put a whole object into the open frame; the digest's low bits say where frames and packs end."""
        if self._frame is not None and self._frame_length + size > FRAME_SIZE:
            self._close_frame()
            if self._shared.length >= PACK_MAX:
                self._seal_shared()
        frame = self._frame
        if frame is None:
            frame = self._frame = []
            self._frame_slot = (self._shared.number, len(self._shared.frames))
            self._shared.frames.append(frame)
        self._objects[digest] = (size, ((0, size, self._frame_slot, self._frame_length),))
        frame.append(data)
        self._frame_length += size
        if self._frame_length >= FRAME_MIN and not digest[0] & 7:
            self._close_frame()
            if self._shared.length >= PACK_MAX or (self._shared.length >= PACK_MIN and not digest[1] & 1):
                self._seal_shared()

    def _add_medium(self, digest: bytes, size: int, frames: Sequence[Part]) -> None:
        """Put an object that was cut into frames into the shared pack."""
        pack = self._shared
        places: list[_Place] = []
        offset = 0
        for frame in frames:
            length = min(FRAME_SIZE, size - offset)
            places.append((offset, length, (pack.number, len(pack.frames)), 0))
            pack.frames.append([frame])
            pack.length += length
            offset += length
        self._objects[digest] = (size, tuple(places))
        if pack.length >= PACK_MAX or (pack.length >= PACK_MIN and not digest[1] & 1):
            self._close_frame()
            self._seal_shared()

    def _add_large(self, size: int, pieces: Iterable[Buffer]) -> bytes:
        """Stream an object into packs of its own. Its digest is known only at the end; frames of zeros become holes."""
        hasher = Hasher()
        places: list[_Place] = []
        pack = self._new_pack()
        offset = 0
        for parts in cut(pieces, FRAME_SIZE):
            length = 0
            for part in parts:
                hasher.update(part)
                length += len(part)
            if all(is_zero(part) for part in parts):
                _add_hole(places, offset, length)
            else:
                pack = self._add_own(pack, places, offset, length, [*parts])
            offset += length
        if pack.frames:
            self._packer.seal(pack)
        digest = hasher.digest()
        self._objects.setdefault(digest, (size, tuple(places)))
        return digest

    def _add_large_stored(self, found: StoredObject) -> None:
        """Give an object packs of its own, or rather those that the store has of it."""
        places: list[_Place] = []
        pack = self._new_pack()
        offset = 0
        for part in found.parts:
            if isinstance(part, int):
                _add_hole(places, offset, part)
                offset += part
            else:
                pack = self._add_own(pack, places, offset, part.length, [part])
                offset += part.length
        if pack.frames:
            self._packer.seal(pack)
        self._objects[found.digest] = (found.size, tuple(places))

    def _add_own(self, pack: OpenPack, places: list[_Place], offset: int, length: int, parts: list[Part]) -> OpenPack:
        """Add a frame to a pack of one object; return the pack that the next one goes to."""
        places.append((offset, length, (pack.number, len(pack.frames)), 0))
        pack.frames.append(parts)
        pack.length += length
        if len(pack.frames) < OWN_PACK_FRAMES:
            return pack
        self._packer.seal(pack)
        return self._new_pack()

    # -- frames and packs -----------------------------------------------------------------------------------------------------------

    def _new_pack(self) -> OpenPack:
        self._pack_count += 1
        return OpenPack(self._pack_count - 1)

    def _close_frame(self) -> None:
        if self._frame is not None:
            self._shared.length += self._frame_length
            self._frame = None
            self._frame_length = 0

    def _seal_shared(self) -> None:
        if self._shared.frames:
            self._packer.seal(self._shared)
            self._shared = self._new_pack()

    # -- the end --------------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Seal what is open and wait until every pack is in the store. More content may be added afterwards."""
        self._close_frame()
        self._seal_shared()
        self._packer.wait()

    def built(self, wanted: Iterable[bytes]) -> Built:
        """Return the places of the objects ``wanted`` (raw digests), after :meth:`flush`.

        Packs that hold none of them are left out; packs of equal content (an object that the image has twice) appear once.
        """
        names = sorted(set(wanted))
        used = sorted({place[2][0] for name in names for place in self._objects[name][1] if place[2] is not None})
        first_frame: dict[int, int] = {}
        by_digest: dict[bytes, int] = {}
        packs: list[tuple[bytes, bytes, int, list[FrameEntry]]] = []
        frame_count = 0
        for number in used:
            pack = self._packer.pack(number)
            if pack.digest in by_digest:
                first_frame[number] = by_digest[pack.digest]
                continue
            first_frame[number] = by_digest[pack.digest] = frame_count
            packs.append((pack.digest, pack.key, pack.size, pack.entries))
            frame_count += len(pack.entries)
        objects = []
        for name in names:
            size, places = self._objects[name]
            extents = [
                Extent(offset, length, HOLE if slot is None else first_frame[slot[0]] + slot[1], within)
                for offset, length, slot, within in places
            ]
            objects.append(BuiltObject(name, size, extents))
        return Built(objects, packs)


def _add_hole(places: list[_Place], offset: int, length: int) -> None:
    """Append a hole, growing the last one where they touch."""
    if places and places[-1][2] is None:
        start, before, _, _ = places[-1]
        places[-1] = (start, before + length, None, 0)
    else:
        places.append((offset, length, None, 0))
