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

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from imagefs.cache.counters import ReadCounters, StartCounters
from imagefs.cache.image import Image
from imagefs.cache.link import LinkCounters
from imagefs.cache.residency import resident
from imagefs.cache.start_fetched import note_fetched
from imagefs.cache.start_profile import needed, profile_of
from imagefs.cache.starts import Facts, Start
from imagefs.daemon.folders import KnownFolders
from imagefs.daemon.prefetching import Followed
from imagefs.daemon.publishing import Publisher
from imagefs.daemon.sightings import follow_processes
from imagefs.daemon.start_files import StartFiles, paths_of
from imagefs.daemon.watching import WatchedMount
from imagefs.errors import ImageFSError, NotFoundError
from imagefs.format import optimized
from imagefs.format.profile import Profile
from imagefs.fuse.reading import Reading
from imagefs.mount.table import KERNEL, MountRecord, MountTable

_LOOK_SECONDS: Final = 0.25
"""How often it is looked whether a Start is over."""

_FAREWELL_SECONDS: Final = 2.0

OF_IMAGE_MAX: Final = 4
ALL_MAX: Final = 32
"""Starts that are recorded at a time, of one image and of all: a host that begins a hundred containers learns nothing from the others."""

_GPUS: Final = Path("/proc/driver/nvidia/gpus")


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
        followed: Callable[[str], Followed | None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``restarts``: how many workers were before this one.

        ``previous`` returns what the host knows of an image's starts, and blocks; ``followed`` what the image's prefetch followed.
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
        self._followed = followed
        self._log = log
        self._running: dict[str, _Running] = {}
        self._how: dict[str, tuple[float, Recording]] = {}
        self._unfinished: set[_Running] = set()

    # -- a Start ------------------------------------------------------------------------------------------------------------------------

    async def begin(self, image: Image, record: MountRecord, *, wanted: bool, label: str, shown_before: bool) -> Recording:
        """Begin with a mount that was just made. ``shown_before``: the image was shown by this daemon already."""
        if wanted:
            how = await self._begin(image, record, label=label, shown_before=shown_before)
        else:
            how = Recording(on=False, why="asked for")
        mounted = {other.mountpoint for other in self._table}
        self._how = {mountpoint: known for mountpoint, known in self._how.items() if mountpoint in mounted}
        self._how[record.mountpoint] = record.mounted_at, how
        return how

    async def _begin(self, image: Image, record: MountRecord, *, label: str, shown_before: bool) -> Recording:
        self.unmounted(record.mountpoint)
        recorded = [other for other in self._running.values() if not other.ended]
        if len(recorded) >= ALL_MAX or sum(other.image.name == image.name for other in recorded) >= OF_IMAGE_MAX:
            return Recording(on=False, why="enough other starts are being recorded now")
        watched, unwatched = None, ""
        if record.mode == KERNEL:
            try:
                watched = await trio.to_thread.run_sync(WatchedMount, Path(record.mountpoint), image, self._folders)
            except ImageFSError as error:
                unwatched = error.message
        manifest = image.manifest
        facts = Facts(
            image.name,
            record.ref,
            record.mountpoint,
            record.mode,
            label,
            gpu=_gpu(),
            watched=watched is not None,
            host={"kernel": os.uname().release, "cpus": os.cpu_count() or 1},
            image={"files": manifest.files, "bytes": manifest.bytes},
        )
        start = Start(facts, image.objects)
        # The kernel has pages of what this daemon showed it before, or one before it: who reads those does not ask.
        start.late = self._restarts > 0 if record.mode == KERNEL else shown_before
        running = _Running(start, image, record, watched, self._figures())
        self._running[record.mountpoint] = running
        self._unfinished.add(running)
        self._counters[2].running = len(self._running)
        self._reading.begin(start)
        self._nursery.start_soon(self._run, running)
        return Recording(on=True, watched=watched is not None, unwatched=unwatched)

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
        record = self._table.get(running.record.mountpoint)
        if record is None or record.mounted_at != running.record.mounted_at:
            return "unmounted"
        return running.start.is_over()

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
        start.facts.image["stored"] = _stored(image)
        start.facts.optimized = _optimized(image)
        if (followed := self._followed(image.name)) is not None:
            profile = followed.profile
            start.facts.profile = {
                "starts": profile.starts,
                "accesses": len(profile.accesses),
                "bytes": followed.content,
                "stored": followed.stored,
                "key": profile.key._asdict(),
            }
            start.profiled = _shares(profile, start)
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


def _stored(image: Image) -> int:
    """Return the bytes of the packs that an image's map names."""
    return sum(image.objects.pack(number).size for number in range(image.objects.pack_count))


def _gpu() -> str:
    """Return the model of the first GPU that NVIDIA's driver knows; "" if there is none."""
    try:
        for folder in sorted(_GPUS.iterdir()):
            for line in (folder / "information").read_text(errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Model":
                    return value.strip()
    except OSError:
        pass
    return ""


def _optimized(image: Image) -> dict[str, object] | None:
    """Return what an optimized image was made from, and what was expected of that."""
    found = optimized.read(image.manifest.annotations)
    if found is None:
        return None
    before, after = found.before, found.after
    gain = {"gets_before": before.gets, "gets_after": after.gets, "bytes_before": before.stored, "bytes_after": after.stored}
    return {"from": found.origin, "expected_gain": gain}


def _shares(profile: Profile, start: Start) -> dict[bytes, int]:
    """Return in what share of starts each object is touched, at most, of those that a Start has touched."""
    touched = {key for key, _, _ in start.files if isinstance(key, bytes)}
    columns, shares, at = profile.columns, dict[bytes, int](), 0
    for name, count in zip(columns.names(), columns.counts, strict=True):
        if name in touched:
            shares[name] = max(columns.shares[at : at + count])
        at += count
    return shares
