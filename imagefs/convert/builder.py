"""Content becomes objects, frames and packs, and goes into the store while the source is still being read.

What it promises:

- **A pure function of the input.** Which frame an object lands in, and where a pack ends, depends on the content and its order
  alone: never on the number of jobs, on timing, or on what the store has. Two machines give the same packs.
- **Boundaries resynchronise.** Small objects share frames and frames share packs, and both end where a digest says so. When a few
  files of an image change, the packs around them change and the others are met again, byte for byte.
- **Nothing is done twice.** A run of frames that an image of this store already has (:class:`~imagefs.convert.known.KnownPacks`) is
  neither compressed nor written; an object met twice in one image is kept once.
- **Bounded memory.** Content that waits to be compressed and packs that wait to be stored are bounded in bytes; the caller of
  :meth:`ContentBuilder.add` waits for room.

Who owns what: ``add`` and ``finish`` belong to one thread, which decides all boundaries. Packing threads turn a sealed run of frames into
a pack and hand it to a storing thread: a store's waits (a disk's sync, a network's round trip) must not keep a core from its work. They
share nothing but the store, the known packs and the tallies, which are added up under a lock.

What does not live here: reading sources, and what the tree looks like.
"""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

import zstandard

from imagefs.convert.entry import Content
from imagefs.convert.known import KnownPacks
from imagefs.convert.pieces import FRAME_SIZE, cut, is_zero, with_holes
from imagefs.digest import Buffer, Hasher, digest_of
from imagefs.format.objectmap import HOLE, Extent
from imagefs.format.pack import FrameEntry, Pack, build_pack, compress_frame, pack_key_of
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ObjectStore, pack_key

FRAME_MIN: Final = 128 * 1024
"""A frame of small objects ends no earlier than this, but for the end of its pack."""

OWN_PACKS_FROM: Final = 1024 * 1024
"""An object of this size or more has packs of its own."""

PACK_MIN: Final = 256 * 1024
PACK_MAX: Final = 2 * 1024 * 1024
"""Bytes of content in a shared pack: it ends between these two where a digest says so, and then at the latest."""

OWN_PACK_FRAMES: Final = 64
"""Frames in a pack of one object: 16 MiB of content."""

_WAITING_PACKS: Final = 1
"""Packs of the largest size that wait for a packing thread."""

_STORING_MAX: Final = 20 * 1024 * 1024
"""Bytes, compressed, that storing threads have or wait for; a store's client may hold them once more."""

_STORING_THREADS: Final = 8
"""A store that is 20 ms away takes eight times as much so: measured, 12 s in place of 26 for 1.4 GB."""

_Slot = tuple[int, int]
"""A frame's place: (pack number, index in that pack)."""


class _OpenPack:
    """A run of frames that is being gathered. A frame is a list of buffers, so that small objects join without a copy each."""

    __slots__ = ("frames", "length", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.frames: list[list[Buffer]] = []
        self.length = 0


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A pack that is in the store.

    ``key`` is the digest of its frames' digests, ``size`` its bytes as stored, ``new`` whether this run wrote it.
    """

    digest: bytes
    key: bytes
    size: int
    entries: list[FrameEntry]
    new: bool


class _Room:
    """A bound in bytes on what is between two stages. One that is larger than all of it may go alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._condition = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait for room for ``size`` bytes, and take it."""
        with self._condition:
            while self._used and self._used + size > self._limit:
                self._condition.wait()
            self._used += size

    def leave(self, size: int) -> None:
        """Give it back."""
        with self._condition:
            self._used -= size
            self._condition.notify()


@dataclass(slots=True)
class Tally:
    """Where the workers' time went (thread-seconds) and what they wrote."""

    hash_seconds: float = 0.0
    compress_seconds: float = 0.0
    store_seconds: float = 0.0
    new_bytes: int = 0
    shared_bytes: int = 0
    packs_new: int = 0
    packs_shared: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


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

    def __init__(self, store: ObjectStore, known: KnownPacks, *, jobs: int, level: int) -> None:
        """``jobs`` worker threads compress at zstd ``level``."""
        self._store = store
        self._known = known
        self._level = level
        self._local = threading.local()
        self._packing = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="pack")
        self._storing = ThreadPoolExecutor(max_workers=_STORING_THREADS, thread_name_prefix="store")
        self._unpacked = _Room((jobs + _WAITING_PACKS) * OWN_PACK_FRAMES * FRAME_SIZE)
        self._unstored = _Room(_STORING_MAX)
        self._failed = threading.Event()
        self._futures: dict[int, Future[StoredPack]] = {}
        self._pack_count = 0
        # digest -> (size, places), where a place is (object offset, length, slot or None for a hole, offset in the frame)
        self._objects: dict[bytes, tuple[int, tuple[tuple[int, int, _Slot | None, int], ...]]] = {}
        self._shared = self._new_pack()
        self._frame: list[Buffer] | None = None
        self._frame_slot: _Slot = (0, 0)
        self._frame_length = 0
        self.tally = Tally()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # In this order: a packing thread may be about to hand over.
        self._packing.shutdown(wait=True, cancel_futures=True)
        self._storing.shutdown(wait=True, cancel_futures=True)

    # -- adding content -------------------------------------------------------------------------------------------------------------

    def add(self, size: int, pieces: Iterable[Buffer], sparse: list[tuple[int, int]] | None = None) -> Content:
        """Take one file's content and return its name.

        ``pieces`` are the stored bytes in order: all ``size`` of them, or with ``sparse`` the data segments back to back. Raises what
        the pieces raise, and the store's errors, also those of packs that were handed in by earlier calls.
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
                self._add_medium(digest, size, data)
        return Content(size, digest, None)

    def _add_small(self, digest: bytes, size: int, data: bytes) -> None:
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

    def _add_medium(self, digest: bytes, size: int, data: bytes) -> None:
        """Cut an object into frames of the shared pack."""
        view = memoryview(data)
        pack = self._shared
        places: list[tuple[int, int, _Slot | None, int]] = []
        for offset in range(0, size, FRAME_SIZE):
            piece = view[offset : offset + FRAME_SIZE]
            places.append((offset, len(piece), (pack.number, len(pack.frames)), 0))
            pack.frames.append([piece])
            pack.length += len(piece)
        self._objects[digest] = (size, tuple(places))
        if pack.length >= PACK_MAX or (pack.length >= PACK_MIN and not digest[1] & 1):
            self._close_frame()
            self._seal_shared()

    def _add_large(self, size: int, pieces: Iterable[Buffer]) -> bytes:
        """Stream an object into packs of its own. Its digest is known only at the end; frames of zeros become holes."""
        hasher = Hasher()
        places: list[tuple[int, int, _Slot | None, int]] = []
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
                places.append((offset, length, (pack.number, len(pack.frames)), 0))
                pack.frames.append(parts)
                pack.length += length
                if len(pack.frames) == OWN_PACK_FRAMES:
                    self._seal(pack)
                    pack = self._new_pack()
            offset += length
        if pack.frames:
            self._seal(pack)
        digest = hasher.digest()
        self._objects.setdefault(digest, (size, tuple(places)))
        return digest

    # -- frames and packs -----------------------------------------------------------------------------------------------------------

    def _new_pack(self) -> _OpenPack:
        self._pack_count += 1
        return _OpenPack(self._pack_count - 1)

    def _close_frame(self) -> None:
        if self._frame is not None:
            self._shared.length += self._frame_length
            self._frame = None
            self._frame_length = 0

    def _seal_shared(self) -> None:
        if self._shared.frames:
            self._seal(self._shared)
            self._shared = self._new_pack()

    def _seal(self, pack: _OpenPack) -> None:
        """Hand a pack to the packing threads; waits while enough content is on its way."""
        self._unpacked.enter(pack.length)
        if self._failed.is_set():
            self._raise_first()
        done = self._futures[pack.number] = Future[StoredPack]()
        self._packing.submit(self._pack, pack.frames, pack.length, done)

    def _raise_first(self) -> None:
        for future in list(self._futures.values()):
            if future.done() and (error := future.exception()) is not None:
                raise error

    # -- in the threads -------------------------------------------------------------------------------------------------------------

    def _pack(self, frames: list[list[Buffer]], length: int, done: Future[StoredPack]) -> None:
        """Turn frames into a pack, and hand it on unless it is known."""
        try:
            try:
                packed = self._packed(frames)
            finally:
                frames.clear()
                self._unpacked.leave(length)
            if isinstance(packed, StoredPack):
                done.set_result(packed)
                return
            key, pack = packed
            self._unstored.enter(pack.size)
            self._storing.submit(self._store_pack, key, pack, done)
        except BaseException as error:  # noqa: BLE001 - it reaches whoever waits for the pack
            self._fail(done, error)

    def _store_pack(self, key: bytes, pack: Pack, done: Future[StoredPack]) -> None:
        try:
            start = time.perf_counter()
            try:
                new = self._store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
            finally:
                pack.parts.clear()
                self._unstored.leave(pack.size)
            stored = StoredPack(pack.digest, key, pack.size, pack.entries, new)
            self._count(stored, store=time.perf_counter() - start)
            done.set_result(stored)
        except BaseException as error:  # noqa: BLE001 - it reaches whoever waits for the pack
            self._fail(done, error)

    def _fail(self, done: Future[StoredPack], error: BaseException) -> None:
        self._failed.set()
        done.set_exception(error)

    def _packed(self, frames: list[list[Buffer]]) -> StoredPack | tuple[bytes, Pack]:
        """Return the pack that the store has of these frames, or the key and the bytes of a new one."""
        start = time.perf_counter()
        datas = [parts[0] if len(parts) == 1 else b"".join(parts) for parts in frames]
        digests = [digest_of(data) for data in datas]
        key = pack_key_of(digests)
        hashed = time.perf_counter()
        found = self._known.find(key)
        if found is not None:
            digest, size, entries = found
            stored = StoredPack(digest, key, size, entries, new=False)
            self._count(stored, hashing=hashed - start, store=time.perf_counter() - hashed)
            return stored
        compressor = self._compressor()
        blobs = []
        for data, frame_digest in zip(datas, digests, strict=True):
            codec, blob = compress_frame(data, compressor)
            blobs.append((frame_digest, len(data), codec, blob))
        pack = build_pack(blobs)
        self._count(None, hashing=hashed - start, compressing=time.perf_counter() - hashed)
        return key, pack

    def _compressor(self) -> zstandard.ZstdCompressor:
        # A zstd context belongs to one thread at a time.
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self._level, write_checksum=False, write_content_size=True, write_dict_id=False
            )
        return compressor

    def _count(self, pack: StoredPack | None, *, hashing: float = 0.0, compressing: float = 0.0, store: float = 0.0) -> None:
        tally = self.tally
        with tally.lock:
            tally.hash_seconds += hashing
            tally.compress_seconds += compressing
            tally.store_seconds += store
            if pack is None:
                return
            if pack.new:
                tally.new_bytes += pack.size
                tally.packs_new += 1
            else:
                tally.shared_bytes += pack.size
                tally.packs_shared += 1

    # -- the end --------------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Seal what is open and wait until every pack is in the store. More content may be added afterwards."""
        self._close_frame()
        self._seal_shared()
        for future in self._futures.values():
            future.result()

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
            pack = self._futures[number].result()
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


def _add_hole(places: list[tuple[int, int, _Slot | None, int]], offset: int, length: int) -> None:
    """Append a hole, growing the last one where they touch."""
    if places and places[-1][2] is None:
        start, before, _, _ = places[-1]
        places[-1] = (start, before + length, None, 0)
    else:
        places.append((offset, length, None, 0))
