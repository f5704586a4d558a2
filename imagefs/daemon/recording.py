"""Recording: a Start begins with each mount, ends when it has gone quiet, and becomes a document for ``explain`` and a profile.

Invariants:

- nothing here fails, delays or ends a mount: what goes wrong is logged, and costs a document or a profile;
- a Start ends once, by going quiet, by the limit, or with its mount; one whose worker dies or is replaced is dropped: a profile that ends
  in the middle would say that the rest is not needed;
- the documents and the profile are made after the end, in threads.

In kernel mode the kernel tells of opens (``watching``) where that works; elsewhere only what the daemon serves is recorded.

Belongs to the trio thread. What does not live here: what is collected (``imagefs.cache.starts``), what becomes of a profile
(``publishing``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import trio

from imagefs.cache.counters import ReadCounters, StartCounters
from imagefs.cache.image import Image
from imagefs.cache.link import LinkCounters
from imagefs.cache.residency import resident
from imagefs.cache.start_fetched import note_fetched
from imagefs.cache.start_profile import needed, profile_of
from imagefs.cache.starts import LIMIT_SECONDS, Start
from imagefs.daemon.folders import KnownFolders
from imagefs.daemon.prefetching import Followed
from imagefs.daemon.publishing import Publisher
from imagefs.daemon.sightings import follow_processes
from imagefs.daemon.start_facts import add_known, facts_of
from imagefs.daemon.start_files import StartFiles, paths_of
from imagefs.daemon.watching import WatchedMount
from imagefs.errors import ImageFSError, NotFoundError
from imagefs.format.profile import Key, Profile
from imagefs.fuse.reading import Reading
from imagefs.mount.table import KERNEL, MountRecord, MountTable

_LOOK_SECONDS: Final = 0.25
"""How often it is looked whether a Start is over."""

_FAREWELL_SECONDS: Final = 2.0
_SEVERAL: Final = 2

OF_IMAGE_MAX: Final = 4
ALL_MAX: Final = 32
"""Starts that are recorded at a time, of one image and of all: a host that begins a hundred containers learns nothing from the others."""

LOOKS_MAX: Final = 4
"""Mounts that are not recorded of which it is found out at a time which program starts there, for what is fetched ahead of it."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether a mount is recorded, and why not; whether opens of what is local are seen, and why not."""

    on: bool
    why: str = ""
    watched: bool = False
    unwatched: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return it as ``mount`` and ``status`` show it: the reason is that of ``recording``, or else of ``watched``, being false."""
        return {"recording": self.on, "watched": self.watched, "recording_reason": self.why or self.unwatched}


class Onlooker(Protocol):
    """Who is told which program a start is of, and what it opens, while it goes on: ``Prefetching``."""

    def expects(self, manifest: str, mountpoint: str) -> None:
        """A start begins."""

    def runs(self, manifest: str, mountpoint: str, key: Key, *, settled: bool) -> None:
        """Its program is known; ``settled``: for good."""

    def gone(self, manifest: str, mountpoint: str) -> None:
        """It is over."""

    def opened(self, manifest: str, digest: bytes) -> None:
        """An object is opened that the kernel has."""

    def followed(self, manifest: str) -> Followed | None:
        """Return what was prefetched from."""


@dataclass(slots=True, eq=False)
class _Running:
    """A Start that is running. ``before`` are the daemon's figures when it began."""

    start: Start
    image: Image
    record: MountRecord
    watched: WatchedMount | None
    before: dict[str, int]
    over: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    ended: str = ""


class Recorder:
    """See the module."""

    def __init__(
        self,
        nursery: trio.Nursery,
        reading: Reading,
        table: MountTable,
        publisher: Publisher,
        *,
        cache: Path,
        counters: tuple[ReadCounters, LinkCounters, StartCounters],
        restarts: int,
        previous: Callable[[str], Profile | None],
        onlooker: Onlooker,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``restarts``: how many workers were before this one.

        ``previous`` returns what the host knows of an image's starts, and blocks.
        """
        self._nursery = nursery
        self._reading = reading
        self._table = table
        self._publisher = publisher
        self._cache = cache
        self._files = StartFiles(cache)
        self._folders = KnownFolders(cache)
        self._counters = counters
        self._restarts = restarts
        self._previous = previous
        self._onlooker = onlooker
        self._log = log
        self._running: dict[str, _Running] = {}
        self._looks = 0
        self._how: dict[str, tuple[float, Recording]] = {}
        self._unfinished: set[_Running] = set()

    # -- a Start ------------------------------------------------------------------------------------------------------------------------

    async def begin(self, image: Image, record: MountRecord, *, wanted: bool, label: str, shown_before: bool) -> Recording:
        """Begin with a mount that was just made. ``shown_before``: the image was shown by this daemon already."""
        if wanted:
            how = await self._begin(image, record, label=label, shown_before=shown_before)
        else:
            how = Recording(on=False, why="asked for")
            if record.prefetch and self._looks < LOOKS_MAX:
                # Not where the task begins: others may be mounted before it does.
                self._looks += 1
                self._nursery.start_soon(self._look_at, image, record, label)
        mounted = {other.mountpoint for other in self._table}
        self._how = {mountpoint: known for mountpoint, known in self._how.items() if mountpoint in mounted}
        self._how[record.mountpoint] = record.mounted_at, how
        return how

    async def _begin(self, image: Image, record: MountRecord, *, label: str, shown_before: bool) -> Recording:
        self.unmounted(record.mountpoint)
        recorded = [other for other in self._running.values() if not other.ended]
        if len(recorded) >= ALL_MAX or sum(other.image.name == image.name for other in recorded) >= OF_IMAGE_MAX:
            return Recording(on=False, why="enough other starts are being recorded now")
        watched, unwatched = await self._watch(image, record)
        start = self._start(image, record, label, watched)
        # The kernel has pages of what this daemon showed it before, or one before it: who reads those does not ask.
        start.late = self._restarts > 0 if record.mode == KERNEL else shown_before
        running = _Running(start, image, record, watched, self._figures())
        self._running[record.mountpoint] = running
        self._unfinished.add(running)
        self._counters[2].running = len(self._running)
        self._reading.begin(start)
        self._nursery.start_soon(self._run, running)
        return Recording(on=True, watched=watched is not None, unwatched=unwatched)

    async def _watch(self, image: Image, record: MountRecord) -> tuple[WatchedMount | None, str]:
        """Have the kernel tell of opens, in kernel mode; return why it does not, where it cannot."""
        if record.mode == KERNEL:
            try:
                return await trio.to_thread.run_sync(WatchedMount, Path(record.mountpoint), image, self._folders), ""
            except ImageFSError as error:
                return None, error.message
        return None, ""

    def _start(self, image: Image, record: MountRecord, label: str, watched: WatchedMount | None) -> Start:
        """Return a Start, of which it is told which program it is of, as soon as that is known, and what that opens."""
        facts, onlooker = facts_of(image, record, label, watched=watched is not None), self._onlooker
        start = Start(facts, image.objects)

        def identified(of: Start) -> None:
            # It is told which: a function of the Start that refers to it would keep both, and the image, until the collector comes.
            onlooker.runs(facts.manifest, facts.mountpoint, Key.of(facts.entry, facts.label, facts.gpu), settled=of.entry_known)

        if watched is not None:
            start.opened_here = partial(onlooker.opened, image.name)
        if watched is not None or len(self._table.of_image(image.name)) < _SEVERAL:
            # Else who reads may do so through another one of its mounts.
            start.identified = identified
        onlooker.expects(facts.manifest, facts.mountpoint)
        return start

    async def _look_at(self, image: Image, record: MountRecord, label: str) -> None:
        """Find out which program starts on a mount that is not recorded. Nothing of it is kept."""
        try:
            watched, _ = await self._watch(image, record)
            start = self._start(image, record, label, watched)
            self._reading.begin(start)
            try:
                await self._until_known(start, record, watched)
            finally:
                self._reading.end(start)
                if watched is not None:
                    await watched.close()
        except Exception:  # noqa: BLE001 # a bug here must not end the daemon
            self._log.exception("recording_bug", mountpoint=record.mountpoint)
        finally:
            self._onlooker.gone(image.name, record.mountpoint)
            self._looks -= 1

    async def _until_known(self, start: Start, record: MountRecord, watched: WatchedMount | None) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_processes, start)
            if watched is not None:
                nursery.start_soon(watched.run, start)
            while not start.entry_known and start.seconds < LIMIT_SECONDS and self._is_there(record):
                # Nobody tells that somebody else has unmounted it.
                await trio.sleep(_LOOK_SECONDS)
                if watched is not None:
                    await watched.look_into(start, whole=False)
            nursery.cancel_scope.cancel()

    def unmounted(self, mountpoint: str) -> None:
        """Take note that a mount went."""
        running = self._running.get(mountpoint)
        if running is not None and not running.ended:
            running.ended = "unmounted"
            running.over.set()

    def state(self, record: MountRecord) -> dict[str, object]:
        """Return what is to be told of a mount: whether it is being recorded now, and why not."""
        running = self._running.get(record.mountpoint)
        if running is not None and running.record.mounted_at == record.mounted_at and not running.ended:
            return {"recording": True, "watched": running.watched is not None, "recording_reason": ""}
        at, how = self._how.get(record.mountpoint, (0.0, None))
        if how is None or at != record.mounted_at:
            return {"recording": False, "watched": False, "recording_reason": "the process that recorded it was replaced"}
        return {"recording": False, "watched": False, "recording_reason": "its start is over" if how.on else how.why}

    async def _run(self, running: _Running) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if running.watched is not None:
                    nursery.start_soon(running.watched.run, running.start)
                nursery.start_soon(follow_processes, running.start)
                await self._until_over(running)
                nursery.cancel_scope.cancel()
        except Exception:  # noqa: BLE001 # a bug here must not end the daemon
            self._log.exception("recording_bug", mountpoint=running.record.mountpoint)
            running.ended = ""
        finally:
            self._reading.end(running.start)
            running.start.finish()
            self._onlooker.gone(running.start.manifest, running.record.mountpoint)
            if running.watched is not None:
                await running.watched.close()
            if self._running.get(running.record.mountpoint) is running:
                del self._running[running.record.mountpoint]
                self._counters[2].running = len(self._running)
        try:
            if running.ended:
                await self._finish(running)
        except Exception:  # noqa: BLE001 # likewise
            self._log.exception("recording_bug", mountpoint=running.record.mountpoint)
        finally:
            self._unfinished.discard(running)
            running.done.set()

    async def _until_over(self, running: _Running) -> None:
        while True:
            with trio.move_on_after(_LOOK_SECONDS):
                await running.over.wait()
            ended, watched = running.over.is_set(), running.watched
            if watched is not None:
                await watched.look_into(running.start, whole=ended)
            if not ended and (watched is None or not watched.has_more):
                running.ended = self._ended(running)
            if running.ended:
                return

    def _ended(self, running: _Running) -> str:
        return running.start.is_over() if self._is_there(running.record) else "unmounted"

    def _is_there(self, record: MountRecord) -> bool:
        """Say whether a mount is there still, and not another in its place."""
        now = self._table.get(record.mountpoint)
        return now is not None and now.mounted_at == record.mounted_at

    # -- after its end ------------------------------------------------------------------------------------------------------------------

    async def _finish(self, running: _Running) -> None:
        start = running.start
        start.stats = self._stats(running)
        previous = await trio.to_thread.run_sync(self._previous, start.manifest) if start.unseen else None
        cached = await trio.to_thread.run_sync(resident, self._cache, needed(start))
        for file, ranges in cached.items():
            for begin, end in ranges:
                start.touch(file, begin, end, start.unseen[file])
        profile = await trio.to_thread.run_sync(profile_of, start, cached, previous)
        try:
            await trio.to_thread.run_sync(self._keep, start, running.ended, running.image)
        except OSError as error:
            self._log.warning("start_not_kept", mountpoint=running.record.mountpoint, error=str(error))
        self._log.info(
            "start_recorded",
            manifest=start.manifest,
            mountpoint=running.record.mountpoint,
            ended=running.ended,
            seconds=round(start.seconds, 3),
            files=len(start.files),
            accesses=0 if profile is None else len(profile.accesses),
            watched=start.facts.watched,
        )
        self._counters[2].recorded += 1
        if profile is not None:
            await self._publisher.add(profile)

    def _keep(self, start: Start, ended: str, image: Image) -> Path:
        add_known(start, image, self._onlooker.followed(image.name))
        paths = paths_of(image.tree, start)
        document = start.document(ended, {file: _shown(path) for file, path in paths.items()})
        note_fetched(document, image.objects)
        path = self._files.keep(start, document)
        if start.facts.mode == KERNEL:
            self._folders.note(image.name, image.tree, sorted({path.rpartition(b"/")[0] for path in paths.values()} - {b""}))
        return path

    async def explain(self, record: MountRecord) -> dict[str, object]:
        """Return where the document of a mount's Start is; of one that is running it is written now. ``NotFoundError``."""
        running = self._running.get(record.mountpoint)
        if running is not None and running.record.mounted_at == record.mounted_at and not running.ended:
            if running.watched is not None:
                await running.watched.look_into(running.start, whole=True)
            start = running.start.copy()
            start.stats = self._stats(running)
            try:
                path = await trio.to_thread.run_sync(self._keep, start, "running", running.image)
            except OSError as error:
                raise NotFoundError(f"the start cannot be written down: {error}") from error
            return {"path": str(path), "running": True}
        # It may have ended a moment ago.
        await self.finished()
        found = await trio.to_thread.run_sync(self._files.newest, record.manifest, record.mounted_at)
        if found is None:
            raise NotFoundError(f"no start of {record.mountpoint} was recorded: {self.state(record)['recording_reason']}")
        return {"path": str(found), "running": False}

    async def finished(self) -> None:
        """Return when what has ended is written down."""
        for running in list(self._unfinished):
            if running.ended:
                await running.done.wait()

    async def shutdown(self) -> None:
        """End all Starts, as their mounts have gone, and publish what can be in a moment: the next daemon does the rest."""
        for mountpoint in list(self._running):
            self.unmounted(mountpoint)
        await self.finished()
        with trio.move_on_after(_FAREWELL_SECONDS):
            await self._publisher.drain()

    # -- figures ------------------------------------------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, int]:
        read, link, _ = self._counters
        return {
            "store_bytes": link.store_bytes,
            "prefetch_bytes": read.prefetch_bytes,
            "prefetch_used_bytes": read.prefetch_used_bytes,
            "tree": read.tree_bytes,
            "ram": read.ram_bytes,
            "ssd": read.ssd_bytes,
            "store": read.fetched_bytes,
        }

    def _stats(self, running: _Running) -> dict[str, Any]:
        """Return what the whole daemon did meanwhile: that of other images too."""
        now = self._figures()
        grown = {name: now[name] - running.before[name] for name in now}
        tiers = ("tree", "ram", "ssd", "store")
        return {name: grown[name] for name in grown if name not in tiers} | {"bytes_read": {tier: grown[tier] for tier in tiers}}


def _shown(path: bytes) -> str:
    return "/" + path.decode(errors="replace")
