"""New frames of memory become packs, and go into the store while the memory is still being read.

What it promises: which frames a pack has, and in which order, depends on the order in which they came alone, so a push that is run again
makes the same packs and finds those that are there; memory is bounded, whatever the size of the snapshot: at most ``_FRAMES_AT_ONCE``
frames are on their way, and who brings the next one waits.

Who owns what: one thread calls ``add`` and ``finish``. Compressing threads turn a frame each into what is stored of it; storing threads
wait for the frames of a pack and for the store, which must not keep a core from its work.

What does not live here: what is in a frame (``snapshotstore.pages``), and all other files (``imagefs.convert.builder``).
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Self

import zstandard

from imagefs.digest import Buffer, digest_of
from imagefs.format.pack import build_pack, compress_frame, pack_key_of
from imagefs.store.base import ObjectStore, pack_key
from snapshotstore.fingerprints import TablePack

PACK_FRAMES: Final = 4
"""Frames of a pack, at most: 16 MiB of content."""

_FRAMES_AT_ONCE: Final = 24
_STORING_THREADS: Final = 8

_Stored = tuple[bytes, int, int, Buffer]


class PackedFrames(NamedTuple):
    """The packs, and for each the numbers that its frames were given; of their bytes, those that the store did not have."""

    packs: list[TablePack]
    numbers: list[list[int]]
    new_bytes: int
    new_packs: int


class FramePacker:
    """See the module. A context manager: leaving it stops the threads."""

    def __init__(self, store: ObjectStore, *, jobs: int, level: int) -> None:
        """``jobs`` threads compress at zstd ``level``."""
        self._store = store
        self._level = level
        self._local = threading.local()
        self._compressing = ThreadPoolExecutor(jobs, thread_name_prefix="pages")
        self._storing = ThreadPoolExecutor(_STORING_THREADS, thread_name_prefix="store")
        self._room = threading.Semaphore(_FRAMES_AT_ONCE)
        self._failed = threading.Event()
        self._open: list[Future[_Stored]] = []
        self._open_numbers: list[int] = []
        self._packs: list[Future[tuple[TablePack, bool]]] = []
        self._numbers: list[list[int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # In this order: a storing thread may wait for what a compressing thread makes.
        self._storing.shutdown(wait=False, cancel_futures=True)
        self._compressing.shutdown(wait=True, cancel_futures=True)
        self._storing.shutdown(wait=True)

    def add(self, number: int, pieces: list[bytes]) -> None:
        """Take a frame, whose pieces are let go of; wait for room. Raises the store's errors, also those that an earlier pack met."""
        self._room.acquire()
        if self._failed.is_set():
            self._raise_first()
        self._open.append(self._compressing.submit(self._compress, pieces))
        self._open_numbers.append(number)
        if len(self._open) == PACK_FRAMES:
            self._seal()

    def finish(self) -> PackedFrames:
        """Wait until all of it is in the store. Raises the store's errors."""
        if self._open:
            self._seal()
        stored = [future.result() for future in self._packs]
        new = [pack.size for pack, is_new in stored if is_new]
        return PackedFrames([pack for pack, _ in stored], self._numbers, sum(new), len(new))

    def _seal(self) -> None:
        frames, self._open = self._open, []
        self._numbers.append(self._open_numbers)
        self._open_numbers = []
        self._packs.append(self._storing.submit(self._keep, frames))

    def _raise_first(self) -> None:
        for future in self._packs:
            if future.done() and (error := future.exception()) is not None:
                raise error

    # -- in the threads -------------------------------------------------------------------------------------------------------------

    def _compress(self, pieces: list[bytes]) -> _Stored:
        data = b"".join(pieces)
        pieces.clear()
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            # A zstd context belongs to one thread at a time.
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self._level, write_checksum=False, write_content_size=True, write_dict_id=False
            )
        digest = digest_of(data)
        codec, stored = compress_frame(data, compressor)
        return digest, len(data), codec, stored

    def _keep(self, frames: list[Future[_Stored]]) -> tuple[TablePack, bool]:
        count = len(frames)
        try:
            stored = [future.result() for future in frames]
            frames.clear()
            pack = build_pack(stored)
            key = pack_key_of(frame[0] for frame in stored)
            stored.clear()
            is_new = self._store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
        except BaseException:
            # Not only for those who wait for this pack: whoever waits for room has to look.
            self._failed.set()
            raise
        finally:
            self._room.release(count)
        return TablePack(pack.digest, key, pack.size, pack.entries), is_new
