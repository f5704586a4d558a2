"""Whether a store still has all of a snapshot, as it was: every frame is read from it and compared with its digest.

What it promises: whatever this host has in its tiers says nothing here, the bytes are the store's; frames that several snapshots have are
read once by one :class:`Verifier`; a frame that is wrong is got once more, alone, before it is called damaged, and does not keep others
from being looked at; memory is bounded by the threads, whatever the snapshot: a GET and a frame for each. A store that is not well is an
error.

Which thread owns what: the caller's hands out GETs, and takes their results in order. What does not live here: repairing, and what this
host has on its disk (``imagefs cache verify``).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Self

import zstandard

from imagefs.cache.planner import Run, plan_runs
from imagefs.convert.stages import Progress
from imagefs.errors import ImageFSError, IntegrityError, NotFoundError, UnsupportedError
from imagefs.format.objectmap import HOLE, FrameRow, ObjectMap
from imagefs.format.pack import decode_frame
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from imagefs.store.images import get_blob
from snapshotstore import manifest
from snapshotstore.contents import Index, extents, files
from snapshotstore.fingerprints import decode

_DAMAGE: Final = (IntegrityError, NotFoundError, UnsupportedError)
"""What is wrong with what is stored, and not with the store."""

Broken = tuple[int, ImageFSError]
"""A frame's number, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong: ``what`` names it, and the ``files`` cannot be read whole because of it."""

    what: str
    why: str
    files: tuple[str, ...] = ()


@dataclass(slots=True)
class Verified:
    """What was looked at: frames, their bytes of content and as stored; those that were looked at before are among them."""

    frames: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)


class Verifier:
    """See the module. A context manager: leaving it stops the threads."""

    def __init__(self, store: ObjectStore, *, jobs: int) -> None:
        """``jobs`` threads get and decode."""
        self._store = store
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="verify")
        self._local = threading.local()
        # By digest of frame and pack: the same frame in another pack is another place that may be damaged.
        self._good: set[tuple[bytes, bytes]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def verify(self, index: Index, progress: Callable[[Progress], None] | None = None) -> Verified:
        """Look at all of a snapshot. Raises what a store raises that is not well, and what its map meets that is unsound."""
        objects = index.objects
        objects.validate()
        found = Verified(damage=self._tables(index))
        used = _used(objects)
        rows = {number: objects.frame(number) for number in used}
        found.frames, found.bytes = len(rows), sum(row.length for row in rows.values())
        found.stored_bytes = sum(row.stored for row in rows.values())
        wanted = [(number, row) for number, row in rows.items() if (row.digest, objects.pack(row.pack).digest) not in self._good]
        total = sum(row.stored for _, row in wanted)
        done = 0
        broken: list[Broken] = []
        for run, wrong in self._each(objects, plan_runs(wanted)):
            done += run.end - run.start
            broken += wrong
            bad = {number for number, _ in wrong}
            self._good |= {(row.digest, objects.pack(row.pack).digest) for number, row in run.frames if number not in bad}
            if progress is not None:
                progress(Progress("verify", done, total))
        found.damage += _named(index, broken)
        return found

    def _each(self, objects: ObjectMap, runs: Iterable[Run[int]]) -> Iterator[tuple[Run[int], list[Broken]]]:
        """Yield what came of each run, in their order, with as many under way as there are threads, and half as many waiting."""
        pending: deque[tuple[Run[int], Future[list[Broken]]]] = deque()
        left = iter(runs)
        while True:
            for run in islice(left, self._jobs + self._jobs // 2 + 1 - len(pending)):
                pending.append((run, self._pool.submit(self._look, objects.pack(run.pack).digest.hex(), run)))
            if not pending:
                return
            run, future = pending.popleft()
            yield run, future.result()

    def _tables(self, index: Index) -> list[Damage]:
        """Look at the page tables, of which a restore needs none, but the next push does."""
        found = []
        for blob in manifest.pages_of(index.snapshot.manifest.annotations):
            try:
                decode(get_blob(self._store, blob.digest, blob.size))
            except _DAMAGE as error:
                found.append(Damage(f"page table {blob.digest}", error.message))
        return found

    # -- in the threads -------------------------------------------------------------------------------------------------------------

    def _look(self, pack: str, run: Run[int]) -> list[Broken]:
        """Get a run; return the frames that are not what they should be."""
        try:
            data = memoryview(self._store.get(pack_key(pack), ByteRange(run.start, run.end)))
        except _DAMAGE:
            suspects = run.frames
        else:
            suspects = [(number, row) for number, row in run.frames if self._wrong(data, run.start, row) is not None]
        return [(number, error) for number, row in suspects if (error := self._alone(pack, row)) is not None]

    def _alone(self, pack: str, row: FrameRow) -> ImageFSError | None:
        """Get one frame; return what is wrong with it, if anything: it may have been damaged on the way before."""
        try:
            data = memoryview(self._store.get(pack_key(pack), ByteRange(row.offset, row.offset + row.stored)))
        except NotFoundError:
            return NotFoundError(f"the store has no pack {pack}")
        except _DAMAGE as error:
            return error
        return self._wrong(data, row.offset, row)

    def _wrong(self, data: memoryview, start: int, row: FrameRow) -> ImageFSError | None:
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        at = row.offset - start
        try:
            decode_frame(data[at : at + row.stored], row.codec, row.length, row.digest, decompressor)
        except _DAMAGE as error:
            return error
        return None


def _used(objects: ObjectMap) -> list[int]:
    """Return the numbers of the frames that files of the snapshot lie in: a map names all frames of a pack that it has one of."""
    return sorted({frame for _, _, frame, _ in objects.extent_rows()} - {HOLE})


def _named(index: Index, broken: list[Broken]) -> list[Damage]:
    """Say of frames in which files they are missing."""
    if not broken:
        return []
    objects = index.objects
    wanted = {number for number, _ in broken}
    in_files: dict[int, list[str]] = {number: [] for number in wanted}
    for file in files(index.tree):
        row = objects.find(file.object) if file.object is not None else None
        if row is not None:
            for number in wanted & {extent.frame for extent in extents(objects, row)}:
                in_files[number].append(file.path)
    found = []
    for number, error in broken:
        frame = objects.frame(number)
        what = f"frame {frame.digest.hex()} (pack {objects.pack(frame.pack).digest.hex()}, bytes {frame.offset} on)"
        found.append(Damage(what, error.message, tuple(in_files[number])))
    return found
