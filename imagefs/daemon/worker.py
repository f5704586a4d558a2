"""The daemon: one process that owns the FUSE session, the tiers and the control socket of one (store, cache).

Order. Up: the instance's lock, what a dead process left is taken away, the store, the FUSE mount, the control socket, and only then ready.
Down: mounts, FUSE session, socket; the lock goes with the process. Whoever holds the lock is the only daemon of the instance, so everything
found there is its own or dead.
"""

import contextlib
import fcntl
import functools
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.cache.counters import ReadCounters
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.index import bring_index
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.names import ResolvedNames
from imagefs.cache.pressure import Pressure, follow
from imagefs.cache.ram import RamCache
from imagefs.config import Config
from imagefs.daemon.caching import CacheService
from imagefs.daemon.control import SOCKET_NAME, bind_socket, serve_control
from imagefs.daemon.logging_setup import LOG_NAME, make_logger
from imagefs.daemon.metrics import Sources
from imagefs.daemon.mounter import BindMounter, recover
from imagefs.daemon.service import Mounter, Service
from imagefs.daemon.single import SingleMounter, recover_single
from imagefs.errors import AccessError, DaemonError, ImageFSError, StoreError, StoreFullError
from imagefs.fuse.forest import Forest
from imagefs.fuse.guard import Requests
from imagefs.fuse.reading import Reading
from imagefs.fuse.session import FuseSession
from imagefs.memory import settle_daemon
from imagefs.mount.bind import unmount
from imagefs.mount.mountinfo import mount_at
from imagefs.mount.table import MountTable
from imagefs.store.base import ObjectStore
from imagefs.store.lazy import LazyStore

_LOCK_SECONDS: Final = 10.0
_SHUTDOWN_SECONDS: Final = 30.0
_PATROL_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Role:
    """What a daemon process is for.

    ``mountpoint``: without root, the one that it serves, and ends with. ``auto_stop``: end when the last mount goes.
    ``log_to_file``: else to standard error.
    """

    config: Config
    mountpoint: Path | None = None
    auto_stop: bool = False
    log_to_file: bool = True

    @property
    def directory(self) -> Path:
        """The instance's directory."""
        return self.config.instance_dir(self.mountpoint)


def run_daemon(role: Role, ready: Callable[[], None]) -> None:
    """Run a daemon until it is told to stop (control socket, SIGTERM, SIGINT). ``ready`` is called when requests are served.

    Raises an ``ImageFSError`` if it cannot start; nothing stays mounted then.
    """
    settle_daemon()
    directory = role.directory
    make_instance_dir(directory)
    lock = _lock(directory)
    try:
        log = make_logger(directory / LOG_NAME if role.log_to_file else None, role.config.log_level)
        table = MountTable(directory / "mounts.json")
        gone = recover(directory / "fuse", table) if role.mountpoint is None else recover_single(role.mountpoint, table)
        if gone:
            log.warning("recovered", mountpoints=gone)
        store = LazyStore(role.config.store)
        forest = Forest()
        clean = False
        disk = _open_disk(role, forest, log)
        try:
            trio.run(_Worker(role, store, table, forest, disk=disk, log=log, ready=ready).main)
            clean = True
        except Exception as error:
            # Nurseries wrap what ends them in groups.
            found = describe_failure(error)
            if type(found) is DaemonError:
                log.exception("daemon_bug")
            raise found from error
        finally:
            if disk is not None:
                disk.close(clean=clean)
            store.close()
    finally:
        os.close(lock)


def _open_disk(role: Role, forest: Forest, log: structlog.typing.FilteringBoundLogger) -> OpenedTier | None:
    """Open the SSD tier; None where there can be none. A directory that must not be used as a cache is an error."""
    config = role.config
    try:
        place = CachePlace(config.cache)
    except DaemonError as error:
        if role.mountpoint is None:
            raise
        # Without root each mount has a daemon: the first of them has the disk, the others have memory and the store.
        log.warning("cache_in_use", error=error.message)
        return None
    except StoreFullError as error:
        log.warning("cache_unusable", error=error.message)
        return None
    try:
        return OpenedTier(
            place,
            log,
            limit=config.cache_bytes,
            floor=config.cache_floor,
            mounted=lambda: [slot.image.objects for slot in list(forest.slots.values())],
        )
    except StoreError as error:
        place.close()
        log.warning("cache_unusable", error=error.message)
        return None


def make_instance_dir(directory: Path) -> None:
    """Make the instance's directory, for this user alone. ``AccessError`` if that cannot be, or it is another's."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise AccessError(
            f"cannot use the runtime directory {directory}: {error.strerror}", hint="check --runtime and IMAGEFS_RUNTIME"
        ) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise AccessError(
            f"the runtime directory {directory} is not this user's alone", hint=f"chmod 700 {directory}, or use another --runtime"
        )


def _lock(directory: Path) -> int:
    """Become the instance's one daemon; one that is just ending is waited for."""
    descriptor = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise DaemonError("a daemon for this store and cache is already running", hint="`imagefs daemon status`") from None
            time.sleep(0.02)
        else:
            return descriptor


class _Worker:
    """Puts the parts together and runs them."""

    def __init__(
        self,
        role: Role,
        store: ObjectStore,
        table: MountTable,
        forest: Forest,
        *,
        disk: OpenedTier | None,
        log: structlog.typing.FilteringBoundLogger,
        ready: Callable[[], None],
    ) -> None:
        self._role = role
        self._store = store
        self._table = table
        self._forest = forest
        self._disk = disk
        self._log = log
        self._ready = ready
        self._counters = ReadCounters()
        self._requests = Requests(log)
        self._ram = RamCache(role.config.ram_bytes)
        self._link_counters = LinkCounters()
        self._link = Link(store, self._link_counters, log, deadline=role.config.store_deadline)

    async def main(self) -> None:
        """Start, serve, stop."""
        stopped = trio.Event()
        async with trio.open_nursery() as nursery:
            tier = None
            if self._disk is not None:
                tier = self._disk.tier
                nursery.start_soon(self._disk.run)
            ram = self._ram
            pressure = Pressure.of_this_process(self._role.config.ram_bytes, lambda: ram.used)
            nursery.start_soon(self._follow, pressure, ram.set_limit)
            deadline = self._role.config.store_deadline
            fetcher = Fetcher(nursery, self._link, self._ram, tier, self._counters, log=self._log, deadline=deadline)
            reading = Reading(fetcher, self._counters)
            session = FuseSession(nursery, self._forest, reading, self._requests, self._log)
            listener = None
            mounter: Mounter | None = None
            try:
                mounter = await self._mounter(nursery, session, stopped.set)
                listener = bind_socket(self._role.directory)
                service = self._service(mounter, stopped.set)
                nursery.start_soon(serve_control, listener, service.handle, service.after_answer, self._log)
                nursery.start_soon(functools.partial(service.patrol, every=_PATROL_SECONDS, patience=_PATIENCE_SECONDS))
                nursery.start_soon(self._signals, stopped.set)
                self._log.info("started", pid=os.getpid(), store=self._role.config.store)
                self._ready()
                await stopped.wait()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _SHUTDOWN_SECONDS):
                    if mounter is not None:
                        await mounter.shutdown()
                session.stop()
                nursery.cancel_scope.cancel()
                if not session.close():
                    # A thread of it still waits for the kernel: the process takes both along.
                    unmount(self._role.directory / "fuse", lazy=True)
                if listener is not None:
                    with contextlib.suppress(OSError):
                        (self._role.directory / SOCKET_NAME).unlink()
                self._log.info("stopped")

    async def _follow(self, pressure: Pressure, set_limit: Callable[[int], None]) -> None:
        try:
            await follow(pressure, set_limit)
        except Exception:  # noqa: BLE001 # the bound stays as it is; mounts go on
            self._log.exception("pressure_bug")

    async def _mounter(self, nursery: trio.Nursery, session: FuseSession, stop: Callable[[], None]) -> Mounter:
        role = self._role
        if role.mountpoint is not None:
            return SingleMounter(nursery, session, self._forest, self._table, role.mountpoint, stop=stop, log=self._log)
        fuse = role.directory / "fuse"
        fuse.mkdir(mode=0o700, exist_ok=True)
        session.mount(fuse, everybody=True)
        nursery.start_soon(self._run_session, session, stop)
        await session.agreed()
        entry = mount_at(fuse)
        if entry is not None:
            await session.tune(entry.device)
        return BindMounter(session, self._forest, self._table, fuse, self._log)

    async def _run_session(self, session: FuseSession, stop: Callable[[], None]) -> None:
        await session.run()
        # Somebody has unmounted it: without it there is nothing to serve.
        stop()

    def _service(self, mounter: Mounter, stop: Callable[[], None]) -> Service:
        tier = self._disk.tier if self._disk is not None else None
        link, state = self._link_counters, self._link.state
        sources = Sources(self._counters, link, self._ram, tier, self._requests, self._forest, self._table, state)
        service = Service(
            self._role.config,
            self._store,
            sources,
            mounter,
            self._log,
            stop,
            auto_stop=self._role.auto_stop or self._role.mountpoint is not None,
            started_at=time.time(),
            last_mount=trio.current_time(),
        )
        if self._disk is not None:
            service.names = self._names()
            service.caching = CacheService(self._disk, service.resolve, self._bring)
        return service

    def _names(self) -> ResolvedNames | None:
        try:
            return ResolvedNames(self._role.config.cache / "names")
        except (OSError, sqlite3.Error) as error:
            self._log.warning("names_unusable", error=str(error))
            return None

    def _bring(self, manifest: str) -> None:
        """Bring an image's index to this host. Blocks."""
        bring_index(self._store, self._role.config.cache, manifest)

    async def _signals(self, stop: Callable[[], None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                self._log.info("signal", number=number)
                stop()


def describe_failure(error: BaseException) -> ImageFSError:
    """Return the error that a start met, also out of the groups that nurseries make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, ImageFSError) else DaemonError(f"the daemon met a bug: {type(error).__name__}: {error}")
