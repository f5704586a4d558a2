"""What the daemon does when asked: the same for a daemon of root's and for one that serves a single mount without root.

Mounting itself differs, and is a :class:`Mounter`'s. All of it belongs to the trio thread; what blocks runs in threads.
"""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio

from imagefs import __version__
from imagefs.cache.image import Image
from imagefs.cache.index import is_local
from imagefs.cache.names import ResolvedNames
from imagefs.config import Config
from imagefs.daemon import metrics, requests
from imagefs.daemon.caching import CacheService
from imagefs.daemon.inheriting import name_of
from imagefs.daemon.looking import looked
from imagefs.daemon.metrics import Sources
from imagefs.daemon.opening import OpenImages
from imagefs.daemon.prefetching import Prefetching
from imagefs.daemon.recording import Recorder, Recording
from imagefs.daemon.warming import Warmer
from imagefs.digest import is_hex_digest
from imagefs.errors import DaemonError, DeadlineError, ImageFSError, MountError, NotFoundError, StoreError, UsageError
from imagefs.format.profile import Key
from imagefs.mount.checks import canonical
from imagefs.mount.table import FUSE, KERNEL, MountRecord
from imagefs.store import refs
from imagefs.store.base import ObjectStore

_MAPPED_MAX: Final = 64 << 20
"""Bytes of mapped files that may count as this process's memory."""

_RESOLVE_SECONDS: Final = 8.0
"""For how long the store is asked what a ref stands for, before what it stood for the last time counts."""

_T = TypeVar("_T")


class Mounter(Protocol):
    """Mounts images and unmounts them."""

    async def mount(self, image: Image, request: requests.Mount, mountpoint: str) -> tuple[MountRecord, str]:
        """Mount ``image``; return what is recorded, and why in that mode. Nothing stays mounted if it fails."""

    async def umount(self, mountpoint: str, *, lazy: bool) -> None:
        """Unmount. ``MountError`` if nothing of ours is there, or it is busy."""

    async def reconcile(self) -> None:
        """Take note of what was unmounted behind our back, and let go of what nobody uses."""

    async def shutdown(self) -> None:
        """Unmount everything."""

    def hand_on(self) -> None:
        """Leave everything as it is to the next worker; the FUSE session has been left."""

    @property
    def idle(self) -> bool:
        """Nothing is mounted or open."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a worker is told of the daemon that it belongs to.

    ``pid`` is the supervisor's; ``restarts`` counts the workers before this one; ``crash`` is what the first of late died of.
    """

    pid: int
    restarts: int
    crash: dict[str, Any] | None


@dataclass(slots=True)
class Service:
    """Handles requests. ``directory`` is the instance's.

    ``stop`` ends the daemon; with ``auto_stop`` that happens when the last mount goes. ``reload`` returns when another worker is ready to
    take over.
    """

    config: Config
    store: ObjectStore
    sources: Sources
    mounter: Mounter
    log: structlog.typing.FilteringBoundLogger
    stop: Callable[[], None]
    reload: Callable[[], Awaitable[None]]
    past: Past
    images: OpenImages
    directory: Path
    auto_stop: bool
    started_at: float
    names: ResolvedNames | None = None
    caching: CacheService | None = None
    recorder: Recorder | None = None
    prefetching: Prefetching | None = None
    warmer: Warmer | None = None
    stopping: bool = False
    pending: int = 0
    last_mount: float = 0.0

    async def handle(self, request: requests.Request) -> dict[str, object]:
        """Do what is asked; raise an ``ImageFSError`` if it cannot be done."""
        match request:
            case requests.Ping():
                return {"pid": self.past.pid, "version": __version__}
            case requests.Status():
                await self.mounter.reconcile()
                return self._status()
            case requests.Stats():
                return metrics.stats(self.sources)
            case requests.Top():
                return looked(self.sources)
            case requests.Reload():
                await self.reload()
                return {"pid": self.past.pid, "worker_pid": os.getpid()}
            case requests.Stop():
                self.stopping = True
                return {"pid": self.past.pid, "mounts": len(self.sources.table)}
            case requests.Mount():
                self.pending += 1
                try:
                    return await self._mount(request)
                finally:
                    self.pending -= 1
                    self.last_mount = trio.current_time()
            case requests.Umount():
                return await self._umount(request)
            case requests.Explain():
                return await self._explain(request)
            case requests.Prefetch():
                return await self._prefetch(request)
            case requests.Warm():
                return await self._warm(request)
            case requests.Cache():
                if self.caching is None:
                    raise DaemonError("this daemon has no SSD tier", hint="its log says why")
                return await self.caching.handle(request)

    def _status(self) -> dict[str, object]:
        return {
            "pid": self.past.pid,
            "worker_pid": os.getpid(),
            "worker_restarts": self.past.restarts,
            "crash": self.past.crash,
            "version": __version__,
            "store": self.config.store,
            "cache": str(self.config.cache),
            "directory": str(self.directory),
            "auto_stop": self.auto_stop,
            "started_at": self.started_at,
            "rss_bytes": metrics.memory()[0],
            "mounts": self._mounts(),
        }

    def _mounts(self) -> list[dict[str, object]]:
        def recording(record: MountRecord) -> dict[str, object]:
            return Recording(on=False).as_dict() if self.recorder is None else self.recorder.state(record)

        return [mount | recording(record) for record, mount in zip(self.sources.table, metrics.mounts(self.sources), strict=True)]

    async def _mount(self, request: requests.Mount) -> dict[str, object]:
        begin = time.perf_counter()
        if request.mode not in {"auto", FUSE, KERNEL}:
            raise UsageError(f"no such mode: {request.mode!r}", hint="auto, kernel or fuse")
        if request.mode == FUSE and (request.upper or request.dev or request.suid):
            raise UsageError("a writable layer, devices and set-user-id need kernel mode", hint="use --mode kernel")
        if request.label != Key.of(label=request.label).label:
            raise UsageError(f"not a label: {request.label[:80]!r}", hint="a label is printable, and has 128 bytes at most")
        if self.stopping:
            raise MountError("the daemon is stopping")
        if request.namespace and request.namespace != own_namespace():
            raise MountError(
                "the daemon runs in another mount namespace: what it mounts would not be seen here",
                hint="run the command where the daemon was started, or start another daemon with --runtime",
            )
        await self.mounter.reconcile()
        mountpoint = str(await in_thread(canonical, request.mountpoint))
        manifest, offline = await self._resolve(request)
        ahead = self.prefetching.ahead_of(manifest, request) if self.prefetching is not None and request.prefetch else None
        image, moved = await self.images.open(manifest)
        shown_before = image.name.encode() in self.sources.forest.by_name
        record, reason = await self.mounter.mount(image, request, mountpoint)
        recording = Recording(on=False)
        if self.recorder is not None:
            recording = await self.recorder.begin(image, record, wanted=request.record, label=request.label, shown_before=shown_before)
        if ahead is not None:
            # When what is fetched can be recorded.
            ahead.begin(image)
            await ahead.mounted(image, request.wait)
        self.log.info("mounted", mountpoint=record.mountpoint, manifest=manifest, ref=record.ref, slot=record.slot)
        return {
            "mountpoint": record.mountpoint,
            "ref": record.ref,
            "manifest": manifest,
            "mode": record.mode,
            "reason": reason,
            "files": image.manifest.files,
            "bytes": image.manifest.bytes,
            "index_bytes": image.index_bytes,
            "index_moved": moved,
            "offline": offline,
            **recording.as_dict(),
            "prefetched": ahead.share if ahead is not None else 0.0,
            "seconds": time.perf_counter() - begin,
        }

    async def _prefetch(self, request: requests.Prefetch) -> dict[str, object]:
        """Make this host warm for an image."""
        if self.prefetching is None or self.caching is None:
            raise DaemonError("this daemon has no SSD tier", hint="its log says why")
        if self.stopping:
            raise DaemonError("the daemon is stopping")
        manifest, _ = await self._resolve(request)
        ahead = self.prefetching.ahead_of(manifest, request)
        image, moved = await self.images.open(manifest)
        ahead.warm(image)
        if request.wait:
            await ahead.done()
            await self.caching.opened.tier.settled()
        return {
            "ref": request.ref or manifest,
            "manifest": manifest,
            "index_bytes": image.index_bytes,
            "index_moved": moved,
            "profile_bytes": ahead.content,
            "prefetched": ahead.share,
        }

    async def _warm(self, request: requests.Warm) -> dict[str, object]:
        """Bring all of an image to this host, or say how far that is."""
        if self.warmer is None:
            raise DaemonError("this daemon has no SSD tier", hint="its log says why")
        if self.stopping:
            raise DaemonError("the daemon is stopping")
        manifest, _ = await self._resolve(request)
        warmth = self.warmer.of(manifest)
        if request.begin:
            image, _ = await self.images.open(manifest)
            warmth = self.warmer.begin(image)
        known = {} if warmth is None else asdict(warmth)
        return {"ref": request.ref or manifest, "manifest": manifest, "known": warmth is not None, **known}

    async def _resolve(self, request: requests.Mount | requests.Prefetch | requests.Warm) -> tuple[str, str]:
        """Return a manifest's hex digest, and if the store could not be asked for it, why not."""
        if request.manifest is not None:
            if not is_hex_digest(request.manifest):
                raise UsageError(f"not a manifest digest: {request.manifest[:80]!r}")
            return request.manifest, ""
        digest = request.ref.rpartition("@")[2]
        if is_hex_digest(digest) and await in_thread(is_local, self.config.cache, digest):
            # A digest that is on this host needs no store to vouch for it.
            return digest, ""
        try:
            with trio.fail_after(min(_RESOLVE_SECONDS, self.config.store_deadline)):
                return await in_thread(self.resolve, request.ref, abandon=True), ""
        except trio.TooSlowError:
            problem: ImageFSError = DeadlineError("the store did not answer in time when it was asked for the image")
        except (StoreError, DeadlineError) as error:
            problem = error
        known = await in_thread(self.names.get, self.store.url, request.ref) if self.names is not None else None
        if known is None or not await in_thread(is_local, self.config.cache, known[0]):
            raise problem
        self.log.warning("mounted_offline", ref=request.ref, manifest=known[0], resolved_at=known[1], error=problem.message)
        return known[0], problem.message

    def resolve(self, ref: str) -> str:
        """Ask the store what a ref stands for, and remember it. Blocks."""
        try:
            manifest = refs.resolve(self.store, ref)
        except NotFoundError:
            if self.names is not None:
                self.names.forget(self.store.url, ref)
            raise
        if self.names is not None:
            self.names.put(self.store.url, ref, manifest)
            self.names.passed(self.store.url, name_of(ref), manifest)
        return manifest

    async def _umount(self, request: requests.Umount) -> dict[str, object]:
        mountpoint = str(await in_thread(canonical, request.mountpoint))
        await self.mounter.umount(mountpoint, lazy=request.lazy)
        if self.recorder is not None:
            self.recorder.unmounted(mountpoint)
        self._keep_prefetching()
        self.log.info("unmounted", mountpoint=mountpoint, lazy=request.lazy)
        self.stopping = self.stopping or (self.auto_stop and self._may_stop())
        return {"mountpoint": mountpoint, "stopping": self.stopping}

    async def _explain(self, request: requests.Explain) -> dict[str, object]:
        mountpoint = str(await in_thread(canonical, request.mountpoint))
        record = self.sources.table.get(mountpoint)
        if record is None or self.recorder is None:
            raise NotFoundError(f"no image is mounted at {mountpoint}", hint="`imagefs daemon status` lists the mounts")
        return await self.recorder.explain(record)

    def _keep_prefetching(self) -> None:
        """End what is fetched for images that are not mounted any more."""
        if self.prefetching is not None:
            self.prefetching.keep({record.manifest for record in self.sources.table})

    def _may_stop(self) -> bool:
        busy = (self.prefetching is not None and self.prefetching.is_busy) or (self.warmer is not None and self.warmer.is_busy)
        return self.mounter.idle and not self.pending and not busy

    def after_answer(self) -> None:
        """End the daemon if the answer that was just sent said so."""
        if self.stopping:
            self.stop()

    async def patrol(self, *, every: float, patience: float) -> None:
        """Every so many seconds: look what was unmounted, give mapped pages back, end when nothing is mounted for ``patience`` seconds."""
        while True:
            await trio.sleep(every)
            try:
                await self.mounter.reconcile()
            except ImageFSError as error:
                self.log.warning("reconcile_failed", error=error.message)
            if not self.pending:
                self._keep_prefetching()
            if self.sources.readers is not None:
                self.sources.readers.rest()
            if metrics.memory()[1] > _MAPPED_MAX:
                for slot in self.sources.forest.slots.values():
                    slot.image.release_pages()
            if self.auto_stop and self._may_stop() and trio.current_time() - self.last_mount > patience:
                self.stopping = True
                self.stop()


async def in_thread(function: Callable[..., _T], *args: object, abandon: bool = False) -> _T:
    """Run a blocking function in a thread of the control plane's, which reads never wait for."""
    return await trio.to_thread.run_sync(lambda: function(*args), abandon_on_cancel=abandon)


def own_namespace() -> int:
    """Return the inode number of this process's mount namespace."""
    return Path("/proc/self/ns/mnt").stat().st_ino
