"""Bringing all of an image to SSD, now, because somebody asked for it: a host that is made warm before anything is restored there.

It goes at the speed of the link and the disk. Readers go first all the same, as the gate before the store sees to; and what RAM holds of it
is let go of as soon as SSD has it, so that it pushes little of what was read out of there.

Invariants:

- what this host has is not asked for: who begins again after an end of any kind goes on where that was;
- never more than ``MOVING`` bytes as stored are under way, nor more than a ``HELD``th of the RAM tier's bytes of content only in RAM;
- it ends: when all of it has been looked at, once more if SSD did not take it, or when for so long nothing of it came as is waited. What
  is here is counted in the end, by what SSD says that it has: a disk that is full is not hidden. An image that SSD has no room for, even
  without all else, is not begun with.

All of it belongs to the trio thread, but for reading the map. What does not live here: who asks (``imagefs.daemon.warming``), and what
comes slowly and unasked (``completion``).
"""

from dataclasses import dataclass
from typing import Final

import trio

from imagefs.cache.disk import DiskTier
from imagefs.cache.flights import Flight
from imagefs.cache.lacking import Lacking
from imagefs.cache.landing import landed
from imagefs.cache.layout import Lookup, ObjectRecord, Part, parts_of
from imagefs.cache.pieces import Frames
from imagefs.cache.prefetch_plan import Step
from imagefs.cache.prefetches import Prefetches
from imagefs.cache.slab import MISSING
from imagefs.errors import ImageFSError
from imagefs.format.objectmap import HOLE, FrameRow, ObjectMap
from imagefs.format.profile import EVERY_START

MOVING: Final = 48 * 1024 * 1024
"""Bytes as stored: those of 200 MB/s for a quarter of a second, six of the largest GETs."""

HELD: Final = 2
PATIENCE: Final = 60.0
"""Seconds without anything from the store after which it ends, by default."""

BATCH: Final = 8 * 1024 * 1024
"""Bytes as stored of what is looked at together, and become GETs."""

_PASSES: Final = 2
_LOOK: Final = 4096
_BATCH_STEPS: Final = 256
_REST: Final = 0.02
_LANDING: Final = 30.0
_GAP: Final = 64 * 1024
_SOME: Final = 512


@dataclass(slots=True)
class Warmth:
    """How far it is, in bytes of content.

    ``content`` is all of the image, ``here`` what SSD has of it, as far as is known; ``fetched`` came for this, and ``damaged`` is what the
    store has not as it should be. ``is_too_large``: the SSD tier can never have all of it, and nothing was fetched. ``problem`` says what
    prevented the rest, if anything is known.
    """

    content: int = 0
    here: int = 0
    fetched: int = 0
    damaged: int = 0
    is_too_large: bool = False
    is_over: bool = False
    problem: str = ""


class Warming:
    """Brings images. ``run`` is a task for each."""

    def __init__(self, prefetches: Prefetches, disk: DiskTier, *, patience: float = PATIENCE) -> None:
        """It fetches as ``prefetches`` do; ``patience`` is in seconds."""
        self.link = prefetches.link
        self.ram = prefetches.ram
        self.flights = prefetches.flights
        self.store = prefetches.store
        self.counters = prefetches.counters
        self.log = prefetches.log
        self.disk = disk
        self.patience = patience

    async def run(self, lookup: Lookup, warmth: Warmth) -> None:
        """Bring an image, and tell ``warmth`` of it. Raises nothing but ``Cancelled``."""
        try:
            steps = await trio.to_thread.run_sync(_prepared, lookup)
            warmth.content = sum(step.length for step in steps)
            most = await trio.to_thread.run_sync(self._most)
            if warmth.content > most:
                warmth.is_too_large = True
                warmth.problem = f"all of it has {warmth.content} bytes, and the SSD tier may hold {most}"
                return
            await _Bringing(self, lookup, warmth).bring(steps)
        except ImageFSError as error:
            warmth.problem = error.message
            self.log.error("warming_failed", manifest=lookup.name, error=error.message)  # noqa: TRY400 # the store or a map is to blame
        except Exception as error:  # what one image meets must not end the daemon
            warmth.problem = f"unexpected {type(error).__name__}: {error}"
            self.log.exception("warming_bug", manifest=lookup.name)
        finally:
            warmth.is_over = True

    def _most(self) -> int:
        """Return how many bytes SSD can hold when it has let go of all else. Blocks."""
        status = self.disk.status()
        limit, held, free, floor = (int(str(status[name])) for name in ("limit_bytes", "bytes", "free_bytes", "floor_bytes"))
        room = max(0, held + free - floor)
        return min(limit, room) if limit else room


class _Bringing:
    """One image's."""

    def __init__(self, owner: Warming, lookup: Lookup, warmth: Warmth) -> None:
        self._owner = owner
        self._lookup = lookup
        self._warmth = warmth
        self._lacking = Lacking(lookup, owner.ram, owner.flights)
        self._moving = self._held = 0
        self._is_stuck = False
        self._damaged: set[bytes] = set()
        self._progress = trio.current_time()

    async def bring(self, steps: list[Step]) -> None:
        """Bring all of it, with a second look at what SSD did not take at the first."""
        for _ in range(_PASSES):
            self._progress = trio.current_time()
            lacking = await self._not_here(steps)
            if not lacking:
                return
            async with trio.open_nursery() as nursery:
                for batch in _batches(lacking):
                    if not await self._may_go(sum(step.stored for step in batch), sum(step.length for step in batch)):
                        break
                    self._depart(batch, nursery)
            await self._owner.disk.settled()
            if self._is_stuck:
                break
        if not await self._not_here(steps):
            self._warmth.problem, self._warmth.damaged = "", 0

    async def _not_here(self, steps: list[Step]) -> list[Step]:
        """Return what SSD lacks, and count what it has."""
        lacking: list[Step] = []
        for number, step in enumerate(steps):
            if number % _SOME == 0:
                await trio.lowlevel.checkpoint()
            if not self._is_here(step):
                lacking.append(step)
        self._warmth.here = self._warmth.content - sum(step.length for step in lacking)
        return lacking

    def _is_here(self, step: Step) -> bool:
        disk, ram = self._owner.disk, self._owner.ram
        if step.small:
            one = self._lookup.members.sample(step.frame)
            return one is not None and disk.covers(one.digest, 0, one.size, use=False)
        parts = parts_of(ObjectRecord(self._lookup, step.row), step.start, step.end, ram, create=False)
        return all(part.zeros or _on_disk(disk, part) for part in parts)

    async def _may_go(self, stored: int, content: int) -> bool:
        """Wait for room; False if nothing has come for so long that nothing is to be expected."""
        most = self._owner.ram.limit // HELD
        while not self._is_stuck:
            if trio.current_time() - self._progress > self._owner.patience:
                self._is_stuck = True
                self._warmth.problem = f"nothing came from the store for {self._owner.patience:g} s"
            full = (self._moving and self._moving + stored > MOVING) or (self._held and self._held + content > most)
            if not full and not self._owner.link.is_down:
                break
            await trio.sleep(_REST)
        return not self._is_stuck

    def _depart(self, batch: list[Step], nursery: trio.Nursery) -> None:
        flights = self._owner.flights
        wanted: Frames = []
        try:
            for step in batch:
                found = self._lacking.mark(step)
                wanted += found
                if not found:
                    # It is on its way already, or is refused because it failed a moment ago.
                    self._is_refused(Part(None, 0, 0, ObjectRecord(self._lookup, step.row)), step.place)
        except BaseException:
            flights.unmark(wanted)
            raise
        if wanted:
            stored = sum({frame: frame.stored for _, frame in wanted}.values())
            content = sum(frame.length for _, frame in wanted)
            self._moving += stored
            self._held += content
            nursery.start_soon(self._bring, flights.depart(wanted, demand=False, gap=_GAP), wanted, stored, content)

    async def _bring(self, flights: list[Flight], wanted: Frames, stored: int, content: int) -> None:
        try:
            # Shielded: what is marked as on its way has to come, or readers would wait for it in vain.
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    await self._owner.store.bring(flights, nursery, [])
            self._moving -= stored
            stored = 0
            came = 0
            for (part, piece), frame in wanted:
                if part.slab is not None and part.slab.state[piece] != MISSING:
                    came += frame.length
                else:
                    self._failed(part, frame)
            if came:
                self._progress = trio.current_time()
                self._warmth.fetched += came
                self._owner.counters.completed_bytes += came
            await landed(wanted, self._owner.ram, look=_REST, patience=_LANDING)
            self._warmth.here = min(self._warmth.content, self._warmth.here + came)
        finally:
            self._moving -= stored
            self._held -= content

    def _failed(self, part: Part, frame: FrameRow) -> None:
        """Note that a frame did not come."""
        if not self._is_refused(part, frame):
            self._warmth.problem = self._warmth.problem or "the store did not give all of it"

    def _is_refused(self, part: Part, frame: FrameRow) -> bool:
        """Note what is known of a frame that the store has not as it should be: that is kept in mind for a moment."""
        try:
            self._owner.flights.is_good(part, frame, demand=True)
        except ImageFSError as error:
            self._warmth.damaged += 0 if frame.digest in self._damaged else frame.length
            self._warmth.problem = error.message
            self._damaged.add(frame.digest)
            return True
        return False


def _on_disk(disk: DiskTier, part: Part) -> bool:
    return bool(part.name) and disk.covers(part.name, part.base + part.start, part.base + part.stop, use=False)


def _batches(steps: list[Step]) -> list[list[Step]]:
    batches: list[list[Step]] = []
    size = BATCH
    for step in steps:
        if size >= BATCH or len(batches[-1]) >= _BATCH_STEPS:
            batches.append([])
            size = 0
        batches[-1].append(step)
        size += step.stored
    return batches


def _prepared(lookup: Lookup) -> list[Step]:
    """Return all steps of an image, when it can be told what SSD has of them. Blocks. ``IntegrityError`` for an unsound map."""
    lookup.members.build()
    return all_steps(lookup.objects)


def all_steps(objects: ObjectMap) -> list[Step]:
    """Return what brings all content of an image, in the order of its packs. ``IntegrityError`` for an unsound map.

    A frame is one step, whichever runs of it an object has: SSD keeps it then as what it is. But where it is a run of an object from its
    beginning to its end, SSD keeps it in that object's file, so there each place is a step; where there are two in one object, the second
    is found lacking, and brought, when the first has landed.
    """
    found: dict[tuple[bytes, int], Step] = {}
    for row in objects:
        at = 0
        while at < row.size:
            extents = objects.extents(row, at, row.size, most=_LOOK)
            for offset, length, number, frame_offset in extents:
                if number == HOLE:
                    continue
                frame = objects.frame(number)
                small = row.extent_count == 1 and frame.length != row.size
                whole = not frame_offset and frame.length == length
                key = (row.digest, offset) if whole else (b"small" if small else b"", number)
                if key not in found:
                    found[key] = Step(number, 0, EVERY_START, row, offset, offset + length, small=small, place=frame)
            at = extents[-1].offset + extents[-1].length
    return sorted(found.values(), key=lambda step: step.frame)
