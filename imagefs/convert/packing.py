"""Runs of frames become packs in the store, in threads of their own.

What it promises:

- **Nothing is done twice.** A run of frames that an image of this store already has (:class:`~imagefs.convert.known.KnownPacks`) is
  neither compressed nor written; where all of a frame is stored in one place already, it is not even read: its digest is known.
- **Bounded memory.** Content that waits to be compressed and packs that wait to be stored are bounded in bytes; the caller of
  :meth:`Packer.seal` waits for room.

Who owns what: packing threads turn a sealed run of frames into a pack and hand it to a storing thread: a store's waits (a disk's sync, a
network's round trip) must not keep a core from its work. For the same reason a run of which the store has all goes to an asking thread,
which does all of it. They share nothing but the store, the known packs and the tallies, which are added up under a lock.

What does not live here: which frames a pack has (:mod:`imagefs.convert.builder`).
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Self

import zstandard

from imagefs.convert.known import KnownPacks
from imagefs.convert.pieces import FRAME_SIZE
from imagefs.convert.stored import Part, Stored, StoredReader, frame_digest, joined
from imagefs.digest import Buffer, digest_of
from imagefs.format.pack import FrameEntry, Pack, build_pack, compress_frame, pack_key_of
from imagefs.store.base import ObjectStore, pack_key

OWN_PACK_FRAMES: Final = 64
"""Frames in a pack of one object: 16 MiB of content."""

_WAITING_PACKS: Final = 1
"""Packs of the largest size that wait for a packing thread."""

_STORING_MAX: Final = 20 * 1024 * 1024
"""Bytes, compressed, that storing threads have or wait for; a store's client may hold them once more."""

_ASKING_THREADS: Final = 8
_STORING_THREADS: Final = 8
"""A store that is 20 ms away takes eight times as much so: measured, 12 s in place of 26 for 1.4 GB."""


class OpenPack:
    """A run of frames that is being gathered, of ``length`` bytes of content.

    A frame is a list of buffers, so that small objects join without a copy each, and of what the store has.
    """

    __slots__ = ("frames", "length", "number")

    def __init__(self, number: int) -> None:
        """``number`` is whose the pack is to the caller."""
        self.number = number
        self.frames: list[list[Part]] = []
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
            self._condition.notify_all()


@dataclass(slots=True)
class Tally:
    """Where the workers' time went (thread-seconds) and what they wrote."""

    hash_seconds: float = 0.0
    fetch_seconds: float = 0.0
    compress_seconds: float = 0.0
    store_seconds: float = 0.0
    new_bytes: int = 0
    shared_bytes: int = 0
    packs_new: int = 0
    packs_shared: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def seconds(self) -> dict[str, float]:
        """Return the times as stages."""
        return {
            "pack.hash": self.hash_seconds,
            "pack.fetch": self.fetch_seconds,
            "pack.compress": self.compress_seconds,
            "pack.store": self.store_seconds,
        }


class Packer:
    """Takes sealed packs. A context manager: leaving it stops the threads."""

    def __init__(self, store: ObjectStore, known: KnownPacks, *, jobs: int, level: int, written: set[bytes]) -> None:
        """``jobs`` worker threads compress at zstd ``level``; ``written`` has the packs that this conversion stored, in an earlier try."""
        self._store = store
        self._known = known
        self._level = level
        self._local = threading.local()
        self._reader = StoredReader(store)
        self._packing = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="pack")
        self._asking = ThreadPoolExecutor(max_workers=_ASKING_THREADS, thread_name_prefix="ask")
        self._storing = ThreadPoolExecutor(max_workers=_STORING_THREADS, thread_name_prefix="store")
        self._unpacked = _Room((jobs + _WAITING_PACKS) * OWN_PACK_FRAMES * FRAME_SIZE)
        self._unstored = _Room(_STORING_MAX)
        self._failed = threading.Event()
        self._futures: dict[int, Future[StoredPack]] = {}
        self._written = written
        self._counted: set[bytes] = set()
        self.tally = Tally()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # In this order: the others may be about to hand over to a storing thread.
        self._asking.shutdown(wait=True, cancel_futures=True)
        self._packing.shutdown(wait=True, cancel_futures=True)
        self._storing.shutdown(wait=True, cancel_futures=True)
        # An error holds the frames of its thread, and those hold this: where the cyclic collector is off, they would stay.
        self._futures.clear()

    def seal(self, pack: OpenPack) -> None:
        """Hand a pack to the packing threads; waits while enough content is on its way. Raises what befell an earlier pack."""
        self._unpacked.enter(pack.length)
        if self._failed.is_set():
            self._raise_first()
        done = self._futures[pack.number] = Future[StoredPack]()
        is_stored = all(isinstance(part, Stored) for parts in pack.frames for part in parts)
        (self._asking if is_stored else self._packing).submit(self._pack, pack, done)

    def wait(self) -> None:
        """Wait until every pack is in the store. Raises the store's errors, and ``DoubtError``."""
        for future in self._futures.values():
            future.result()

    def pack(self, number: int) -> StoredPack:
        """Return a pack that was sealed, once it is in the store."""
        return self._futures[number].result()

    def _raise_first(self) -> None:
        for future in list(self._futures.values()):
            if future.done() and (error := future.exception()) is not None:
                raise error

    # -- in the threads -------------------------------------------------------------------------------------------------------------

    def _pack(self, sealed: OpenPack, done: Future[StoredPack]) -> None:
        """Turn frames into a pack, and hand it on unless it is known."""
        try:
            try:
                packed = self._packed(sealed)
            finally:
                sealed.frames.clear()
                self._unpacked.leave(sealed.length)
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

    def _packed(self, sealed: OpenPack) -> StoredPack | tuple[bytes, Pack]:
        """Return the pack that the store has of these frames, or the key and the bytes of a new one."""
        frames = sealed.frames
        digests = [frame_digest(parts) for parts in frames]
        contents: dict[int, Buffer] = {}
        self._bring(contents, frames, [number for number, digest in enumerate(digests) if digest is None])
        start = time.perf_counter()
        names = [digest_of(contents[number]) if digest is None else digest for number, digest in enumerate(digests)]
        key = pack_key_of(names)
        hashed = time.perf_counter()
        found = self._known.find(key)
        if found is not None:
            digest, size, entries = found
            stored = StoredPack(digest, key, size, entries, new=False)
            self._count(stored, hashing=hashed - start, store=time.perf_counter() - hashed)
            return stored
        self._bring(contents, frames, [number for number in range(len(frames)) if number not in contents])
        compressor = self._compressor()
        compressing = time.perf_counter()
        blobs = []
        for number, name in enumerate(names):
            data = contents[number]
            codec, blob = compress_frame(data, compressor)
            blobs.append((name, len(data), codec, blob))
        pack = build_pack(blobs)
        self._count(None, hashing=hashed - start, compressing=time.perf_counter() - compressing)
        return key, pack

    def _bring(self, contents: dict[int, Buffer], frames: list[list[Part]], numbers: Sequence[int]) -> None:
        """Add the contents of the frames with these ``numbers``; what only the store has is read from there."""
        stored = [part for number in numbers for part in frames[number] if isinstance(part, Stored)]
        read: dict[Stored, bytes] = {}
        if stored:
            start = time.perf_counter()
            read = self._reader.read(stored)
            self._count(None, fetch=time.perf_counter() - start)
        for number in numbers:
            contents[number] = joined(frames[number], read)

    def _compressor(self) -> zstandard.ZstdCompressor:
        # A zstd context belongs to one thread at a time.
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self._level, write_checksum=False, write_content_size=True, write_dict_id=False
            )
        return compressor

    def _count(
        self, pack: StoredPack | None, *, fetch: float = 0.0, hashing: float = 0.0, compressing: float = 0.0, store: float = 0.0
    ) -> None:
        tally = self.tally
        with tally.lock:
            tally.fetch_seconds += fetch
            tally.hash_seconds += hashing
            tally.compress_seconds += compressing
            tally.store_seconds += store
            if pack is None:
                return
            if pack.new:
                self._written.add(pack.digest)
            # What an earlier try of the same conversion stored is new to the store all the same, once.
            if pack.digest in self._written and pack.digest not in self._counted:
                self._counted.add(pack.digest)
                tally.new_bytes += pack.size
                tally.packs_new += 1
            else:
                tally.shared_bytes += pack.size
                tally.packs_shared += 1
