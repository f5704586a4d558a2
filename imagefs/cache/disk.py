"""The SSD tier: decoded bytes of objects in files, beside an index of what is where.

Guarantees:

- **It is never trusted.** What it holds is a hint: the fetcher verifies each frame that it reads from here by its digest, and says
  :meth:`DiskTier.bad` when it is not what it should be. So a flipped bit, a lost write or an unclean stop cost a fetch, never a wrong byte.
- **Landing is off the critical path.** :meth:`DiskTier.land` puts bytes in a bounded queue, from which they are written when no reader
  waits, or a few seconds later; where the disk is slower than the link, full, or broken, bytes are not kept and no reader notices.
- A file is in ``objects/`` only after all of it was verified and made durable (``imagefs.cache.disk_files``), and goes from there when it
  is found to be damaged (:meth:`DiskTier.withdraw`).
- The index is written in one durable commit every :data:`COMMIT_SECONDS` at most: a killed process loses that much of what it landed.

Who owns what: all state belongs to the trio thread. One task (:meth:`DiskTier.run`) hands batches to a thread, one at a time, and changes
the state when the thread is done; so there are no locks.

What does not live here: which bytes are wanted (``fetcher``), which files go when room is needed (``eviction``), and who looks whether
they are still what they were (``scrub``).
"""

import errno
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import trio

from imagefs.cache.disk_commits import Commits, DiskCounters
from imagefs.cache.disk_entries import Entries, Entry
from imagefs.cache.disk_files import Folders, OpenFile, Piece, write_pieces
from imagefs.cache.disk_index import DiskIndex, Row
from imagefs.cache.disk_queue import QUEUE_MAX, LandingQueue, Place, Waiting
from imagefs.cache.disk_small import write_members
from imagefs.cache.eviction import Evictor, Protection
from imagefs.cache.ranges import RangeSet
from imagefs.digest import Buffer
from imagefs.errors import ImageFSError

COMMIT_SECONDS: Final = 1.0
_BATCH: Final = 32 << 20
_QUIET_SECONDS: Final = 0.1
"""For so long no reader may have waited, or what waits to be written waits on: the disk and the cores are the readers' first."""
_WAIT_SECONDS: Final = 5.0
_WAIT_BYTES: Final = QUEUE_MAX // 2
"""But no longer than this, and no more of it."""
_OFF_SECONDS: Final = 10.0
"""For how long nothing is written after the disk has refused a write."""
_LAST_SECONDS: Final = 20.0
_THREADS: Final = 2
"""Of the tier's own: what it writes never queues behind what the daemon does elsewhere, nor that behind it."""
_FOR_EVER: Final = float("inf")
_NOW: Final = float("-inf")


_T = TypeVar("_T")
_Job = tuple[Entry, list[Piece], Waiting]


def _nothing() -> None:
    """For whoever need not know."""


class DiskLog(Protocol):
    """``structlog``'s bound logger, as far as it is needed."""

    def warning(self, event: str, /, *args: Any, **fields: Any) -> Any:  # structlog's signature
        """Log an event with fields."""

    def exception(self, event: str, /, *args: Any, **fields: Any) -> Any:
        """Log an event with fields and the exception being handled."""


class DiskTier:
    """The tier. ``run`` is its task."""

    def __init__(
        self,
        folders: Folders,
        index: DiskIndex,
        log: DiskLog,
        *,
        limit: int,
        floor: int,
        protection: Protection,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``limit`` bounds the bytes held (0: only ``floor`` does); ``floor`` is what stays free on the file system."""
        self.counters = DiskCounters()
        self.limit = limit
        self.floor = floor
        self._folders = folders
        self._index = index
        self._log = log
        self._wall = wall
        self._entries = Entries(folders, index, wall)
        self._evictor = Evictor(index, protection)
        self._queue = LandingQueue()
        self._wake = trio.Event()
        self._committed = trio.Event()
        self._committed_at = _NOW
        self._hurried = False
        self._writing = False
        self._off_until = 0.0
        self._refusal = ""
        self._asked_at = self._waits_since = _NOW
        self._threads = trio.CapacityLimiter(_THREADS)
        self._commits = Commits(folders, index, self._entries, self.counters, threads=self._threads, wall=wall)
        self.scrub_due = _FOR_EVER
        """When what the scrubber looks at next is due, in seconds since the epoch."""
        self.is_sound = True
        """Whether index and files agree, as far as is known: False after a bug, and where the last commit was refused."""

    # -- for the fetcher: synchronous, on the trio thread ------------------------------------------------------------------------------

    def covers(self, name: bytes, start: int, end: int, *, use: bool = True) -> bool:
        """Say whether bytes ``start`` to ``end`` of a file seem to be here; ``use``: they are to be read, so the file counts as used."""
        entry = self._find(name)
        if entry is None or end > entry.size or (entry.ranges is not None and not entry.ranges.covers(start, end)):
            return False
        if use:
            self._entries.use(entry)
        return True

    def open(self, name: bytes) -> OpenFile | None:
        """Return a file to read from, which stays readable whatever happens to the tier; None if it has gone."""
        entry = self._find(name)
        return None if entry is None else self._entries.open(entry)

    def _find(self, name: bytes) -> Entry | None:
        if self._off_until == _FOR_EVER:
            return None
        try:
            return self._entries.find(name)
        except ImageFSError:
            self._log.exception("cache_index_unreadable")
            self.disable()
            return None

    def land(self, place: Place, offset: int, data: Buffer, written: Callable[[], None] = _nothing) -> bool:
        """Keep bytes of a file, if there is room in the queue; False if they are not kept. ``written`` is called when they are there."""
        if not self._queue:
            self._waits_since = trio.current_time()
        if self._wall() < self._off_until or not self._queue.add(place, offset, data, written):
            self.counters.not_landed_bytes += len(data)
            return False
        self._wake.set()
        return True

    @property
    def has_room(self) -> bool:
        """Whether the queue has room, and bytes are taken."""
        return self._queue.size < QUEUE_MAX // 2 and self._wall() >= self._off_until

    def reader_waits(self) -> None:
        """Note that a reader waits for something: what is to be written can wait a little for it."""
        self._asked_at = trio.current_time()

    def bad(self, name: bytes, start: int, end: int) -> None:
        """Forget bytes that were read and are not what they should be. A complete file goes as a whole."""
        entry = self._find(name)
        if entry is None:
            return
        if entry.ranges is None or entry.busy:
            self._entries.doom(entry, damaged=entry.ranges is None)
            self._wake.set()
        else:
            self._entries.hold(entry, -entry.ranges.remove(start, end))

    async def withdraw(self, name: bytes, *, damaged: bool) -> bool:
        """Unlink a complete file now, which is damaged, or of which there is but the row; False if there is none by now."""
        entry = self._find(name)
        if entry is None or entry.ranges is not None:
            return False
        self.counters.damaged_files += damaged
        self._entries.doom(entry, damaged=damaged)
        try:
            await self._commits.write_index()
        except (OSError, ImageFSError) as error:
            # It was unlinked before; its row goes with the next commit that can be.
            self._refused(error)
        return True

    def is_native(self, name: bytes, size: int) -> bool:
        """Say whether the kernel finds all of a file in its place, as far as is known."""
        return self.covers(name, 0, size, use=False) and not self._folders.suspects.has(name)

    @property
    def is_suspect(self) -> bool:
        """Whether anything has to be verified before the kernel may have it."""
        return bool(self._folders.suspects)

    async def quiet(self) -> None:
        """Wait until no reader has waited for a moment, but no longer than is good for what is to be done."""
        with trio.move_on_after(_WAIT_SECONDS):
            while (until := self._asked_at + _QUIET_SECONDS) > trio.current_time():  # noqa: ASYNC110 # readers cannot tell that they stopped
                await trio.sleep_until(until)

    def disable(self) -> None:
        """Hold nothing from now on, for a tier whose task is dead."""
        self._off_until = _FOR_EVER
        self.is_sound = False
        self._refusal = "its task has ended"
        self._queue.clear()

    def adopt(self, name: bytes, row: Row) -> None:
        """Take in a complete file that the index does not know, unless one of its name has come meanwhile."""
        self._entries.adopt(name, row)
        self._wake.set()

    # -- the task ----------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write, seal, commit and evict until cancelled; then finish what was begun, within a deadline."""
        try:
            while True:
                await self._rest()
                await self._round()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_SECONDS):
                try:
                    while self._queue:
                        await self._write()
                    await self._commit()
                except (OSError, ImageFSError) as error:
                    self._refused(error)
                    self.is_sound = False

    async def settled(self) -> None:
        """Wait until everything that was landed so far is committed, or refused."""
        while self._is_busy():
            self._hurry()
            await self._committed.wait()

    def _is_busy(self) -> bool:
        # What is being written is neither in the queue any more nor to be committed yet.
        return bool(self._queue) or self._writing or self._commits.is_due()

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)

    def _hurry(self) -> None:
        self._hurried = True
        self._wake.set()

    async def _rest(self) -> None:
        """Wait until it is time to write, or to commit."""
        while not self._hurried and (until := min(self._write_at(), self._commit_at())) > trio.current_time():
            self._wake = trio.Event()
            with trio.move_on_at(until):
                await self._wake.wait()

    def _write_at(self) -> float:
        if not self._queue:
            return _FOR_EVER
        return _NOW if self._queue.size >= _WAIT_BYTES else min(self._asked_at + _QUIET_SECONDS, self._waits_since + _WAIT_SECONDS)

    def _commit_at(self) -> float:
        if not self._commits.is_due():
            return _FOR_EVER
        return self._committed_at + max(COMMIT_SECONDS, min(self._asked_at + _QUIET_SECONDS - self._committed_at, _WAIT_SECONDS))

    async def _round(self) -> None:
        try:
            # What a step has taken, of the queue or of what is to be sealed, is nowhere else: cancelled halfway it would be lost.
            with trio.CancelScope(shield=True):
                await self._step()
        except (OSError, ImageFSError) as error:
            self._refused(error)
            await trio.sleep(COMMIT_SECONDS)

    async def _step(self) -> None:
        self._writing = True
        try:
            await self._write()
        finally:
            self._writing = False
        if self._hurried or trio.current_time() >= self._commit_at():
            await self._commit()
            await self._make_room()

    async def _write(self) -> None:
        """Write one batch."""
        if self._queue and self._entries.doomed:
            # What comes now may well be what was found damaged a moment ago.
            await self._commits.write_index()
        batch: list[_Job] = []
        frames: list[Waiting] = []
        size = 0
        while self._queue and size < _BATCH:
            waiting = self._queue.pop()
            if waiting.place.members is not None:
                size += waiting.size
                frames.append(waiting)
                continue
            entry = self._entry_for(waiting.place)
            if entry is None:
                self.counters.not_landed_bytes += waiting.size
                continue
            size += waiting.size
            # All of a file that is busy is there: it is about to get its place.
            ranges = None if entry.busy else entry.ranges
            pieces = [piece for piece in waiting.pieces if ranges is not None and not ranges.covers(piece.offset, _end(piece))]
            if pieces:
                entry.busy = True
                batch.append((entry, pieces, waiting))
            else:
                waiting.tell()
        if frames:
            files, refusal = await self._in_thread(write_members, self._folders, self._index, frames)
            self._commits.add_small(files)
            if refusal is not None:
                self._refused(refusal)
            else:
                for waiting in frames:
                    waiting.tell()
        if batch:
            outcome = await self._in_thread(self._write_batch, batch)
            for (entry, pieces, waiting), error in zip(batch, outcome, strict=True):
                self._wrote(entry, pieces, waiting, error)

    def _wrote(self, entry: Entry, pieces: list[Piece], waiting: Waiting, error: OSError | None) -> None:
        """Take in what became of a write."""
        entry.busy = False
        if entry.file is not None and not entry.doomed:
            self._entries.opened(entry)
        if error is not None:
            self._refused(error)
        elif not entry.doomed and entry.ranges is not None:
            new = sum(entry.ranges.add(piece.offset, _end(piece)) for piece in pieces)
            self.counters.landed_bytes += new
            self._entries.hold(entry, new)
            waiting.tell()
            if entry.ranges.covers(0, entry.size):
                self._commits.add_full(entry)

    def _entry_for(self, place: Place) -> Entry | None:
        """Return the entry of a file that is to be written, a new one if there is none; None while an old one of that name is going."""
        entry = self._entries.find(place.name)
        if entry is None and not self._commits.is_taken(place.name):
            entry = self._entries.make(place.name, place.size, RangeSet(place.holes()))
        return None if entry is None or entry.size != place.size else entry

    def _write_batch(self, batch: list[_Job]) -> list[OSError | None]:
        """Write in a thread; return what went wrong, an entry each."""
        outcome: list[OSError | None] = []
        for entry, pieces, _ in batch:
            try:
                if entry.file is None:
                    entry.file = self._folders.create(entry.name, entry.size)
                write_pieces(entry.file, pieces)
                outcome.append(None)
            except OSError as error:
                outcome.append(error)
        return outcome

    async def _commit(self) -> None:
        self._hurried = False
        await self._commits.commit()
        self._committed_at = trio.current_time()
        self._committed.set()
        self._committed = trio.Event()

    def _refused(self, error: OSError | ImageFSError) -> None:
        """The disk does not take writes: leave it alone for a while. Readers are served from the other tiers."""
        self.counters.write_errors += 1
        self._refusal = error.message if isinstance(error, ImageFSError) else error.strerror or str(error)
        if self._wall() >= self._off_until:
            self._log.warning("cache_disk_refuses", error=self._refusal)
        self._off_until = self._wall() + _OFF_SECONDS
        self.counters.not_landed_bytes += self._queue.clear()
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            self._hurry()

    # -- room --------------------------------------------------------------------------------------------------------------------------

    async def _make_room(self) -> None:
        """Evict until the bounds hold."""
        held = self.held
        free, _ = await self._in_thread(self._folders.free)
        over = max(held - self.limit if self.limit else 0, min(self.floor - free, held))
        if over > 0:
            # A fiftieth more than needed, so that not every commit evicts.
            await self.evict(over + (self.limit or held) // 50)

    async def evict(self, need: int, *, wanted: Callable[[bytes], bool] | None = None, pinned: bool = False) -> int:
        """Let go of about ``need`` bytes, of those files that are ``wanted``; ``pinned``: also of what is pinned. Return how many went."""
        total = 0
        while total < need:
            freed = await self._evict_some(need - total, wanted, pinned=pinned)
            if not freed:
                break
            total += freed
        return total

    async def _evict_some(self, need: int, wanted: Callable[[bytes], bool] | None, *, pinned: bool) -> int:
        entries = self._entries
        hand = entries.figures.hand
        victims, hand = await self._in_thread(lambda: self._evictor.choose(need, int(self._wall()), hand, wanted=wanted, pinned=pinned))
        entries.figures = entries.figures._replace(hand=hand)
        freed = 0
        for name in victims:
            entry = entries.find(name)
            if entry is None or entry.busy or name in self._queue:
                continue
            freed += entry.held
            self.counters.evicted_files += 1
            entries.doom(entry)
        self.counters.evicted_bytes += freed
        if freed:
            await self._commits.write_index()
        return freed

    def set_bounds(self, limit: int | None = None, floor: int | None = None) -> None:
        """Change the bounds; they hold from the next commit on, which comes at once."""
        self.limit = self.limit if limit is None else limit
        self.floor = self.floor if floor is None else floor
        self._hurry()

    # -- for people --------------------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Return what is held and what bounds it."""
        free, total = self._folders.free()
        return {
            "bytes": self.held,
            "files": len(self._index),
            "complete_files": self.complete,
            "limit_bytes": self.limit,
            "floor_bytes": self.floor,
            "free_bytes": free,
            "disk_bytes": total,
            "queued_bytes": self._queue.size,
            "settled": not self._is_busy(),
            "refusing": self._refusal if self._wall() < self._off_until else "",
        }

    @property
    def withdrawn(self) -> trio.MemoryReceiveChannel[bytes]:
        """The names of files that were complete, were found damaged, by whomever, and are gone; as far as somebody takes them."""
        return self._commits.withdrawn

    @property
    def held(self) -> int:
        """Bytes on disk."""
        return self._entries.figures.held

    @property
    def complete(self) -> int:
        """Files that are complete."""
        return self._entries.figures.complete


def _end(piece: Piece) -> int:
    return piece.offset + len(piece.data)
