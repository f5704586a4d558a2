"""Bringing all of an image to SSD, in the background: so that a host which has started it once needs the store no more.

Off unless asked for. It is the last in every respect: at its own pace, never while a reader waits for the store or somebody else's GET
waits for its turn, and never by pushing out anything: it rests where the SSD tier has no room for more.

Invariants: what this host has is not asked for; of what it brings, RAM keeps only what a reader came for meanwhile; it is over when all of
the image has been looked at once, and what could not be had then is left to who reads it.

Belongs to the trio thread, but for reading the map. What does not live here: the pace of everything else (``imagefs.cache.gate``).
"""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final

import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk import DiskTier
from imagefs.cache.flights import FetchLog, Flights
from imagefs.cache.lacking import Lacking
from imagefs.cache.landing import landed
from imagefs.cache.layout import Lookup
from imagefs.cache.link import Link
from imagefs.cache.pieces import Frames
from imagefs.cache.prefetch_plan import Step
from imagefs.cache.ram import RamCache
from imagefs.cache.slab import MISSING
from imagefs.cache.store_reads import StoreReads
from imagefs.format.objectmap import HOLE, ObjectMap, ObjectRow
from imagefs.format.profile import EVERY_START

_ROUND: Final = 4 * 1024 * 1024
"""Bytes as stored that are brought at once."""

_LOOK: Final = 256
_REST: Final = 0.25
_LANDING: Final = 10.0
_NO_ROOM: Final = 60.0


class Completion:
    """Brings images. ``run`` is a task for each."""

    def __init__(
        self,
        link: Link,
        ram: RamCache,
        disk: DiskTier,
        flights: Flights,
        *,
        store: StoreReads,
        counters: ReadCounters,
        log: FetchLog,
        rate: int,
    ) -> None:
        """``rate`` is in bytes as stored a second, for all images together."""
        self._link = link
        self._ram = ram
        self._disk = disk
        self._flights = flights
        self._store = store
        self._counters = counters
        self._log = log
        self._rate = rate
        self._turn = trio.Lock()
        self._free_at = trio.current_time()
        self._scopes: dict[str, trio.CancelScope] = {}

    async def run(self, lookup: Lookup) -> None:
        """Bring an image, unless somebody does already. Raises nothing but ``Cancelled``."""
        if lookup.name in self._scopes:
            return
        scope = self._scopes[lookup.name] = trio.CancelScope()
        try:
            with scope:
                await self._complete(lookup)
        except Exception as error:  # noqa: BLE001 # what nobody waits for must not end the daemon
            self._log.error("completion_failed", manifest=lookup.name, error=str(error))  # a map may be to blame
        finally:
            del self._scopes[lookup.name]

    def keep(self, names: Collection[str]) -> None:
        """Stop bringing images that are not among these. What is on its way still comes."""
        for name, scope in self._scopes.items():
            if name not in names:
                scope.cancel()

    async def _complete(self, lookup: Lookup) -> None:
        await trio.to_thread.run_sync(lookup.members.build)
        owners = await trio.to_thread.run_sync(lookup.objects.owners)
        lacking = Lacking(lookup, self._ram, self._flights)
        steps = every_step(lookup.objects, owners)
        is_over = False
        while not is_over:
            wanted, stored, is_over = self._next(steps, lacking)
            if wanted:
                # Shielded: what is marked as on its way has to come, or readers would wait for it in vain.
                with trio.CancelScope(shield=True):
                    await self._bring(wanted, stored)
                await landed(wanted, self._ram, look=_REST, patience=_LANDING)
                await self._room()
            await trio.lowlevel.checkpoint()

    def _next(self, steps: Iterator[Step], lacking: Lacking) -> tuple[Frames, int, bool]:
        """Return what is lacking of the next steps, its bytes as stored, and whether those were the last."""
        wanted: Frames = []
        stored = count = 0
        try:
            for step in islice(steps, _LOOK):
                if found := lacking.mark(step):
                    wanted += found
                    stored += step.stored
                count += 1
                if stored >= _ROUND:
                    break
        except BaseException:
            self._flights.unmark(wanted)
            raise
        return wanted, stored, count < _LOOK and stored < _ROUND

    async def _bring(self, wanted: Frames, stored: int) -> None:
        flights = self._flights.depart(wanted, demand=False)
        async with trio.open_nursery() as nursery:
            await self._store.bring(flights, nursery, [])
        there = [frame for (part, piece), frame in wanted if part.slab is not None and part.slab.state[piece] != MISSING]
        self._counters.completed_bytes += sum(frame.length for frame in there)
        self._free_at = max(self._free_at, trio.current_time()) + stored / self._rate

    async def _room(self) -> None:
        """Wait for the pace, for readers, and for room on SSD."""
        async with self._turn:
            await trio.sleep_until(self._free_at)
            while not self._link.is_quiet or self._link.is_down:  # noqa: ASYNC110 # readers cannot tell that they stopped
                await trio.sleep(_REST)
            while not await trio.to_thread.run_sync(self._has_room):  # noqa: ASYNC110 # nobody tells of room on a disk
                await trio.sleep(_NO_ROOM)

    def _has_room(self) -> bool:
        """Say whether SSD takes more without letting go of something. Blocks."""
        status = self._disk.status()
        limit, held = int(str(status["limit_bytes"])), int(str(status["bytes"]))
        free, floor = int(str(status["free_bytes"])), int(str(status["floor_bytes"]))
        return not status["refusing"] and (not limit or held + 16 * _ROUND < limit) and free > floor + 16 * _ROUND


def every_step(objects: ObjectMap, owners: "Collection[int]") -> Iterator[Step]:
    """Yield all frames of an image in the order of its packs, those of an object with several of them together. ``IntegrityError``.

    ``owners`` is what ``ObjectMap.owners`` returns.
    """
    last = 0
    for number, owner in enumerate(owners):
        if not owner:
            frame = objects.frame(number)
            # All of it is wanted, whichever objects lie in it.
            row = ObjectRow(frame.digest, frame.length, 0, 0)
            yield Step(number, 0, EVERY_START, row, 0, frame.length, small=True, place=frame)
        elif owner != last:
            last = owner
            yield from _of_object(objects, objects.object(owner - 1))


def _of_object(objects: ObjectMap, row: ObjectRow) -> Iterator[Step]:
    at = 0
    while at < row.size:
        extents = objects.extents(row, at, row.size, most=_LOOK)
        for offset, length, number, _ in extents:
            if number != HOLE:
                frame = objects.frame(number)
                yield Step(number, 0, EVERY_START, row, offset, offset + length, small=False, place=frame)
        at = extents[-1].offset + extents[-1].length
