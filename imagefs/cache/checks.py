"""Looking whether complete files of the SSD tier are still what their names say: one way, for whoever has a reason to look.

Invariants: a file that is not what its name says is unlinked and counted before anything else is looked at; one that only cannot be looked
at now (too many open files) stays. The reading is done in one idle thread, some megabytes at a time, past the page cache: what is on the
disk counts, not what the kernel remembers of it.

Pages of a bad file that the kernel has are left alone: who has it open already may be reading good ones, read before the disk went bad.

Belongs to the trio thread. What does not live here: what is looked at, and when (``scrub``, ``disk_open``).
"""

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import trio

from imagefs.cache.disk import DiskLog, DiskTier
from imagefs.cache.disk_files import Folders, Readback
from imagefs.cache.disk_index import DiskIndex, Row
from imagefs.cache.idle import IdleThread

STEP: Final = 4 << 20
"""Bytes that are read at once: while they are, a reader may have to wait for the disk."""

Item = tuple[bytes, int]
"""A complete file: its name, and its size in bytes."""

_ITEMS_MAX: Final = 64
_T = TypeVar("_T")


class Verdict(enum.Enum):
    """What was found."""

    SOUND = enum.auto()
    DAMAGED = enum.auto()
    GONE = enum.auto()
    UNKNOWN = enum.auto()


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Split files, in their order, into runs that are worth a step; one that is larger is a run of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (size + item[1] > STEP or len(batch) == _ITEMS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item[1]
    if batch:
        yield batch


class Checker:
    """Looks at files."""

    def __init__(self, folders: Folders, index: DiskIndex, tier: DiskTier, log: DiskLog, *, idle: IdleThread) -> None:
        """``idle`` does the reading."""
        self._folders = folders
        self._index = index
        self._tier = tier
        self._log = log
        self._idle = idle

    async def look(self, batch: Sequence[Item], *, by: str, rate: float = math.inf, patient: bool = True) -> list[Verdict]:
        """Look at a run of files, and withdraw those that are bad; ``by``: who asks, for the log.

        ``rate`` is the most bytes a second that are read. ``patient``: readers go first.
        """
        if len(batch) == 1 and batch[0][1] > STEP:
            verdicts = [await self._look_at_large(*batch[0], rate=rate, patient=patient)]
        else:
            verdicts = await self._step(self._look_at, batch, seconds=sum(size for _, size in batch) / rate, patient=patient)
        for (name, size), verdict in zip(batch, verdicts, strict=True):
            if verdict is Verdict.DAMAGED and await self._tier.withdraw(name, damaged=True):
                self._log.warning("object_damaged", object=name.hex(), bytes=size, tier="ssd", found_by=by)
            elif verdict is Verdict.GONE:
                await self._tier.withdraw(name, damaged=False)
        counters = self._tier.counters
        counters.scrubbed_files += len(batch)
        counters.scrubbed_bytes += sum(size for _, size in batch)
        return verdicts

    async def _step(self, function: Callable[..., _T], *args: object, seconds: float, patient: bool) -> _T:
        """Have the idle thread do something, which takes ``seconds`` at least."""
        if patient:
            await self._tier.quiet()
        until = trio.current_time() + seconds
        result = await self._idle(function, *args)
        await trio.sleep_until(until)
        return result

    async def verify(self) -> dict[str, int]:
        """Look at every complete file, without a pause. Incomplete ones are verified as they are read."""
        checked = bad = size = 0
        name = b""
        while rows := await trio.to_thread.run_sync(self._index.after, name, _ITEMS_MAX):
            name = rows[-1][0]
            for batch in batched(complete(rows)):
                verdicts = await self.look(batch, by="verify", patient=False)
                checked += len(batch)
                size += sum(item[1] for item in batch)
                bad += verdicts.count(Verdict.DAMAGED)
        return {"files": checked, "bytes": size, "bad": bad}

    # -- in the idle thread -----------------------------------------------------------------------------------------------------------

    def _look_at(self, batch: Sequence[Item]) -> list[Verdict]:
        verdicts = []
        for name, size in batch:
            found = self._open(name, size)
            verdicts.append(found if isinstance(found, Verdict) else self._read(found, name, size) or Verdict.UNKNOWN)
        return verdicts

    async def _look_at_large(self, name: bytes, size: int, *, rate: float, patient: bool) -> Verdict:
        found = await self._idle(self._open, name, size)
        verdict = found if isinstance(found, Verdict) else None
        while verdict is None:
            verdict = await self._step(self._read, found, name, STEP, seconds=STEP / rate, patient=patient)
        return verdict

    def _open(self, name: bytes, size: int) -> Readback | Verdict:
        try:
            return Readback(self._folders.open_complete(name, ask=False), size)
        except FileNotFoundError:
            return Verdict.GONE
        except OSError:
            return Verdict.UNKNOWN

    def _read(self, readback: Readback, name: bytes, most: int) -> Verdict | None:
        """Read some of a file; return what it is, None while that is not known."""
        try:
            if not readback.go_on(most):
                return None
        except OSError:
            # Bytes that cannot be read are as bad to the kernel as wrong ones; so are those that fs-verity refuses.
            return Verdict.DAMAGED
        if readback.digest() != name:
            return Verdict.DAMAGED
        # It may be older than the file system's fs-verity, or was still open for writing when it got its place.
        self._folders.protect(name)
        return Verdict.SOUND


def complete(rows: Iterable[tuple[bytes, Row]]) -> list[Item]:
    """Return the complete files among rows."""
    return [(name, row.size) for name, row in rows if row.complete]
