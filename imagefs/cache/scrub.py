"""The scrubber: all complete files of the SSD tier are looked at again and again, in the order of their names, each once in a period.

In kernel mode the kernel reads these files and verifies nothing. So what this finds is what bounds for how long a byte that went bad on the
disk can be served (docs/semantics.md).

The pace needs no sums: names are digests, so how far a name is from the first one says how much of the cache lies before it. A file is due
when that share of the period has gone by. Where the scrubber is behind, because the host was off, readers were busy or the period was made
shorter, it goes on without a pause, but reads no more than ``RATE`` bytes a second, and readers go first.

Invariants: where a round is, and when it began, is written to the index now and then and at the end, so a restart does not begin anew; it
is never more than one period behind, or a host that was off for a month would scrub four times. A bug here ends the scrubber alone.

Belongs to the trio thread. What does not live here: what looking is, and what becomes of a bad file (``checks``).
"""

import contextlib
import time
from collections.abc import Callable
from typing import Final

import trio

from imagefs.cache.checks import Checker, Item, batched, complete
from imagefs.cache.disk import DiskLog, DiskTier
from imagefs.cache.disk_index import DiskIndex, Scrub
from imagefs.errors import StoreError

RATE: Final = 64 << 20
"""Bytes a second, at most: a tenth of what a slow SSD gives."""

_TICK: Final = 1.0
"""Seconds: what is due sooner waits for each other, so that an idle host wakes once a second for it at most."""
_LOOK: Final = 60.0
"""Seconds after which the wall clock is looked at again."""
_SAVE: Final = 60.0
_ROWS: Final = 64
_FIRST: Final = bytes(32)
_SHARE: Final = 1 << 64


class Scrubber:
    """See the module. ``run`` is its task; ``tier`` is told what is due when."""

    def __init__(
        self,
        checker: Checker,
        index: DiskIndex,
        tier: DiskTier,
        log: DiskLog,
        *,
        period: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``period`` is in seconds; 0: nothing is ever looked at."""
        self._checker = checker
        self._index = index
        self._tier = tier
        self._log = log
        self._period = period
        self._wall = wall
        self._at = index.scrub or Scrub(wall(), _FIRST)
        self._saved = index.scrub
        self._saved_at = trio.current_time()

    def _due(self, name: bytes) -> float:
        # A round begins in the future only while nothing of it was looked at. A clock that was set back would have all wait for what it
        # showed before.
        latest = self._wall() + (self._period if self._at.name == _FIRST else 0)
        if self._at.begun > latest:
            self._at = self._at._replace(begun=latest)
        return self._at.begun + self._period * int.from_bytes(name[:8], "big") / _SHARE

    async def run(self) -> None:
        """Scrub until cancelled."""
        if not self._period:
            return
        try:
            while True:
                rows = await trio.to_thread.run_sync(self._index.after, self._at.name, _ROWS)
                for batch in batched(complete(rows)):
                    await self._until_due(batch[0][0])
                    await self._look(batch)
                if rows:
                    self._at = self._at._replace(name=rows[-1][0])
                else:
                    await self._begin_anew()
        except Exception:  # noqa: BLE001 # what is served does not depend on it
            self._log.exception("scrubber_bug")
        finally:
            with trio.CancelScope(shield=True):
                await self._save()

    async def _begin_anew(self) -> None:
        begun = max(self._at.begun + self._period, self._wall() - self._period)
        self._at = Scrub(begun, _FIRST)
        await self._save()
        await self._until_due(_FIRST)
        # Whatever there is, or is not.
        await trio.sleep(_TICK)

    async def _until_due(self, name: bytes) -> None:
        while True:
            due = self._tier.scrub_due = self._due(name)
            left = due - self._wall()
            if left <= 0:
                return
            if trio.current_time() - self._saved_at >= _SAVE:
                await self._save()
            await trio.sleep(min(max(left, _TICK), _LOOK))

    async def _look(self, batch: list[Item]) -> None:
        await self._checker.look(batch, by="scrubber", rate=RATE)
        self._at = self._at._replace(name=batch[-1][0])
        if trio.current_time() - self._saved_at >= _SAVE:
            await self._save()

    async def _save(self) -> None:
        self._saved_at = trio.current_time()
        if self._saved != self._at:
            # On a full disk: after a restart what was looked at since is looked at once more.
            with contextlib.suppress(StoreError):
                await trio.to_thread.run_sync(self._index.keep_scrub, self._at)
                self._saved = self._at
