"""Carries out a plan: reads frames of an image, makes the new ones, and stores them as packs in the plan's order.

What it promises:

- **A pure function of image and plan.** Where a pack ends depends on what is in it alone, never on the number of threads or on timing.
- **Nothing unverified goes into a pack.** A frame that is copied is decoded and hashed on its way, a small object has the digest that is
  its name; otherwise ``IntegrityError``, which names the pack it came from.
- **Bounded memory.** A few megabytes a thread, the pack that is being filled, and those that are being stored. Small objects, which come in
  the order of the old packs and go in the order of need, wait in a scratch file without a name.

Who owns what: the caller's thread owns the scratch file's end and the pack that is being filled; threads read, decode, compress and store,
and share nothing but the store. What does not live here: what goes where (``imagefs.convert.needed``), and publishing.
"""

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Final, Self, TypeVar

import zstandard

from imagefs.convert.needed import Copied, Joined, Member, Plan
from imagefs.convert.packing import StoredPack
from imagefs.convert.runs import GET_MAX, runs_of
from imagefs.decompressors import Decompressors
from imagefs.digest import Buffer, digest_of
from imagefs.errors import ImageFSError, IntegrityError, NotFoundError, StoreFullError
from imagefs.format.objectmap import FrameRow, ObjectMap
from imagefs.format.pack import ENTRY_SIZE, FOOTER_SIZE, build_pack, compress_frame, decode_frame, pack_key_of
from imagefs.store.base import ByteRange, ObjectStore, pack_key

GETS: Final = 2
"""A pack is as many GETs of its frames, and ends with the last of them: so no small one is left over."""

PACK_MAX: Final = GETS * GET_MAX
"""Bytes of a pack, at most, unless one frame is larger: up to here, S3 is written to in one request, under one condition."""

LEVEL: Final = 3
"""The zstd level of joined frames: part of an optimized image's identity, as a conversion's level is of its image's."""

_BATCH: Final = 4 * 1024 * 1024
"""Bytes of content that a thread works on at once, at least one frame."""

_GAP: Final = 256 * 1024
"""Bytes that are fetched and dropped rather than ask twice."""

THREADS: Final = 8
"""A store 20 ms away is waited for by several at once; more than a few compete for the interpreter."""

_STORING: Final = 3
"""Packs that are being stored; a store's client may hold each once more."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Frame = tuple[bytes, int, int, Buffer]
"""A frame as :func:`build_pack` takes it: digest, length of the content, codec, stored bytes."""


class _OpenPack:
    """A pack that is being filled: where it ends depends on what is in it alone."""

    __slots__ = ("_get", "_gets", "_size", "frames")

    def __init__(self) -> None:
        self.frames: list[_Frame] = []
        self._size = 0
        self._gets = 1
        self._get = 0

    def add(self, frame: _Frame) -> bool:
        """Take a frame; return False, and do not, if the pack ends before it."""
        more = len(frame[3])
        if self._get and self._get + more > GET_MAX:
            self._gets, self._get = self._gets + 1, 0
        tail = (len(self.frames) + 1) * ENTRY_SIZE + FOOTER_SIZE
        if self.frames and (self._gets > GETS or self._size + more + tail > PACK_MAX):
            return False
        self.frames.append(frame)
        self._size += more
        self._get += more
        return True


class Repacker:
    """Makes the packs of one plan. A context manager: leaving it stops the threads and forgets the scratch file."""

    def __init__(
        self, store: ObjectStore, objects: ObjectMap, *, threads: int = THREADS, told: Callable[[int], None] | None = None
    ) -> None:
        """``objects`` is the map that the plan was made for. The caller's thread tells ``told`` how many bytes of content are done."""
        self._store = store
        self._objects = objects
        self._ahead = threads
        self._told = told or (lambda _: None)
        self._local = threading.local()
        self._decompressors = Decompressors()
        self._working = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="repack")
        self._storing = ThreadPoolExecutor(max_workers=_STORING, thread_name_prefix="store")
        self._scratch: IO[bytes] | None = None
        self._places: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._working.shutdown(wait=True, cancel_futures=True)
        self._storing.shutdown(wait=True, cancel_futures=True)
        if self._scratch is not None:
            self._scratch.close()

    def run(self, plan: Plan) -> list[StoredPack]:
        """Store the plan's frames as packs and return these, in order. Raises the store's errors, and ``IntegrityError``."""
        wanted: dict[int, list[Member]] = {}
        for item in plan.frames:
            if isinstance(item, Joined):
                for member in item.members:
                    wanted.setdefault(member.frame, []).append(member)
        if wanted:
            self._gather(wanted)
        return self._write(plan.frames)

    # -- small objects, in the order of the old packs -------------------------------------------------------------------------------

    def _gather(self, wanted: dict[int, list[Member]]) -> None:
        """Bring all small objects to the scratch file."""
        try:
            self._scratch = tempfile.TemporaryFile(prefix="imagefs-optimize-", buffering=0)  # noqa: SIM115 - as long as this object
            numbers = sorted(wanted, key=lambda number: self._objects.frame(number)[1:3])
            sizes = ((number, self._objects.frame(number).length) for number in numbers)
            position = 0
            for found in self._each(lambda batch: self._cut_out(batch, wanted), _batches(sizes)):
                for digest, data in found:
                    self._places[digest] = position
                    position += _write_all(self._scratch, data)
        except OSError as error:
            raise StoreFullError(
                f"no scratch space in {tempfile.gettempdir()}: {os.strerror(error.errno or 0)}", hint="TMPDIR names another place"
            ) from error

    def _cut_out(self, numbers: Sequence[int], wanted: dict[int, list[Member]]) -> list[tuple[bytes, bytes]]:
        found = []
        for number, row, stored in self._fetch(numbers):
            content = memoryview(self._decoded(row, stored))
            for member in wanted[number]:
                data = bytes(content[member.within : member.within + member.size])
                if digest_of(data) != member.digest:
                    raise self._damaged(row, f"object {member.digest.hex()} is not in frame {row.digest.hex()}, where the map has it")
                found.append((member.digest, data))
        return found

    # -- frames, in the plan's order ------------------------------------------------------------------------------------------------

    def _write(self, items: Sequence[Copied | Joined]) -> list[StoredPack]:
        futures: list[Future[StoredPack]] = []
        pack = _OpenPack()

        def seal() -> None:
            if len(futures) >= _STORING:
                futures[-_STORING].result()
            futures.append(self._storing.submit(self._store_pack, pack.frames))

        for made in self._each(self._make, _batches((item, item.length) for item in items)):
            for frame in made:
                if not pack.add(frame):
                    seal()
                    pack = _OpenPack()
                    pack.add(frame)
            self._told(sum(frame[1] for frame in made))
        if pack.frames:
            seal()
        return [future.result() for future in futures]

    def _make(self, items: Sequence[Copied | Joined]) -> list[_Frame]:
        copies = {
            number: self._copied(row, stored) for number, row, stored in self._fetch([i.frame for i in items if isinstance(i, Copied)])
        }
        return [copies[item.frame] if isinstance(item, Copied) else self._joined(item) for item in items]

    def _copied(self, row: FrameRow, stored: memoryview) -> _Frame:
        self._decoded(row, stored)
        # A copy: the view would keep all that came with it.
        return row.digest, row.length, row.codec, bytes(stored)

    def _joined(self, item: Joined) -> _Frame:
        assert self._scratch is not None
        file = self._scratch.fileno()
        data = b"".join(os.pread(file, member.size, self._places[member.digest]) for member in item.members)
        codec, stored = compress_frame(data, self._compressor())
        return digest_of(data), len(data), codec, stored

    def _store_pack(self, frames: list[_Frame]) -> StoredPack:
        pack = build_pack(frames)
        key = pack_key_of(frame[0] for frame in frames)
        frames.clear()
        new = self._store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
        pack.parts.clear()
        return StoredPack(pack.digest, key, pack.size, pack.entries, new)

    # -- reading --------------------------------------------------------------------------------------------------------------------

    def _fetch(self, numbers: Iterable[int]) -> Iterator[tuple[int, FrameRow, memoryview]]:
        """Yield frames, as stored, in the order of their places: number, row, bytes."""
        for run in runs_of(((number, self._objects.frame(number)) for number in numbers), gap=_GAP):
            name = self._objects.pack(run.pack).digest.hex()
            try:
                data = memoryview(self._store.get(pack_key(name), ByteRange(run.start, run.end)))
            except NotFoundError as error:
                raise NotFoundError(f"the store has no pack {name}, which the image needs", hint="convert the image again") from error
            for number, row in run.frames:
                yield number, row, data[row.offset - run.start : row.offset - run.start + row.stored]

    def _decoded(self, row: FrameRow, stored: memoryview) -> bytes:
        try:
            return decode_frame(stored, row.codec, row.length, row.digest, self._decompressors.own)
        except IntegrityError as error:
            raise self._damaged(row, error.message) from error

    def _damaged(self, row: FrameRow, what: str) -> ImageFSError:
        return IntegrityError(f"pack {self._objects.pack(row.pack).digest.hex()}: {what}", hint="convert the image again")

    def _compressor(self) -> zstandard.ZstdCompressor:
        # A zstd context belongs to one thread at a time.
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = zstandard.ZstdCompressor(
                level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False
            )
        return found

    # -- threads --------------------------------------------------------------------------------------------------------------------

    def _each(self, task: Callable[[_In], _Out], batches: Iterable[_In]) -> Iterator[_Out]:
        """Yield what ``task`` makes of each batch, in their order; a few are worked on ahead."""
        waiting: deque[Future[_Out]] = deque()
        for batch in batches:
            waiting.append(self._working.submit(task, batch))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(items: Iterable[tuple[_In, int]]) -> Iterator[list[_In]]:
    """Group items, given with their bytes of content, in their order, up to ``_BATCH`` bytes."""
    batch: list[_In] = []
    total = 0
    for item, size in items:
        if batch and total + size > _BATCH:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _write_all(file: IO[bytes], data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    return len(data)
