"""``python -m imagefs.daemon.worker``: the process that serves one (store, cache), as its supervisor starts it.

What is started by that name loads the code and is the template that workers are forked from (``template``).

Order. Up: the supervisor's word; then the SSD tier, what a worker before this one had mounted, the FUSE
connection, the control socket, and only then ready. Down: by being told to stop, which unmounts everything; by draining, which leaves all
to the next worker; or by dying, which leaves it that too. The supervisor has everything that must survive that: lock, connection, socket.
"""

import faulthandler
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import structlog
import trio

from imagefs.cache.counters import ReadCounters, StartCounters
from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.fetcher import Fetcher
from imagefs.cache.image import open_image
from imagefs.cache.index import bring_index
from imagefs.cache.link import Link, LinkCounters
from imagefs.cache.names import ResolvedNames
from imagefs.cache.prefetches import Prefetches
from imagefs.cache.pressure import Pressure, follow
from imagefs.cache.ram import RamCache
from imagefs.cache.scrub import Scrubber
from imagefs.cache.starts import Starts
from imagefs.cache.warming import Warming
from imagefs.daemon.caching import CacheService
from imagefs.daemon.control import serve_control
from imagefs.daemon.exporter import Exporter, remove_socket
from imagefs.daemon.healing import heal
from imagefs.daemon.host_profiles import HostProfiles
from imagefs.daemon.inheriting import Relatives
from imagefs.daemon.instance import TABLE_NAME, Role
from imagefs.daemon.kernel_mounts import KernelMounts
from imagefs.daemon.leasing import LEASE_NAME, MountLease
from imagefs.daemon.lifeline import Lifeline
from imagefs.daemon.logging_setup import make_logger
from imagefs.daemon.metrics import Sources, stats
from imagefs.daemon.mounter import RootMounter
from imagefs.daemon.opening import OpenImages
from imagefs.daemon.prefetching import Prefetching
from imagefs.daemon.prometheus import exposition
from imagefs.daemon.publishing import publisher_of
from imagefs.daemon.recording import Recorder
from imagefs.daemon.restoring import bring_missing, restored
from imagefs.daemon.service import Mounter, Past, Service, in_thread
from imagefs.daemon.settling import settle_mounts
from imagefs.daemon.single import SingleMounter
from imagefs.daemon.template import belong_to, forked
from imagefs.daemon.warming import Warmer
from imagefs.daemon.wire import described, innermost, known
from imagefs.errors import DaemonError, ImageFSError, StoreError, StoreFullError
from imagefs.fuse.forest import Forest
from imagefs.fuse.guard import Requests
from imagefs.fuse.readers import Readers
from imagefs.fuse.reading import Reading
from imagefs.fuse.session import FuseSession
from imagefs.memory import settle_daemon
from imagefs.mount.mountinfo import mount_at
from imagefs.mount.table import MountTable
from imagefs.store.lazy import LazyStore
from imagefs.store.opening import prepared
from imagefs.store.patient import PatientReads

_SWITCH_SECONDS: Final = 0.0005
"""How long a thread keeps the interpreter from one that wants it. What answers readers waits for it behind those that land and plan: at the
interpreter's own 5 ms the p99 of a read from RAM grew five- to ninefold while the link was full, with this less than fourfold."""

_SHUTDOWN_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 5.0
_PATROL_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 5.0

Reason = Literal["stop", "drain"]


@dataclass(slots=True)
class _Told:
    """What a worker has when it is told to go: from the supervisor the role and descriptors, from the template a store that is not open."""

    role: Role
    lifeline: Lifeline
    listener: socket.socket
    supervisor: int
    store: LazyStore


def main() -> None:
    """Be the template that the one argument describes; and run each worker that is forked from it."""
    # A terminal sends these to all; what follows from them is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_SECONDS)
    os.chdir("/")
    given = json.loads(sys.argv[1])
    belong_to(given["pid"])
    role = Role.of(given)
    # What this process starts has no business with them. The lock only has to be held.
    for name in ("life", "listener", "lock"):
        os.set_inheritable(given[name], False)
    store = LazyStore(role.config.store, opening=prepared(role.config.store))
    lifeline = Lifeline(forked(socket.socket(fileno=given["life"])))
    past = lifeline.told_to_go()
    belong_to(given["pid"])
    told = _Told(role, lifeline, socket.socket(fileno=given["listener"]), given["pid"], store)
    status = 0
    try:
        _run(told, Past(told.supervisor, past["restarts"], past["crash"]))
    except Exception as error:  # noqa: BLE001 # whatever it is, the supervisor is told, and it is in the log
        lifeline.say("failed", error=described(error))
        status = known(error).exit_code
    # Without looking back: the next worker waits for it, and a thread that hangs in a GET would be waited for.
    os._exit(status)


def _run(told: _Told, past: Past) -> None:
    """Serve until told to stop or to drain. Raises what ends it otherwise, as an ``ImageFSError``."""
    settle_daemon()
    role = told.role
    log = make_logger(role.log, role.config.log_level)
    store = told.store
    forest = Forest()
    clean = False
    disk = None
    try:
        disk = _open_disk(role, forest, log, follows=past.restarts > 0)
        trio.run(_Worker(told, past, store, forest, disk=disk, log=log).main)
        clean = True
    except Exception as error:
        found = known(error)
        if found is not innermost(error):
            log.exception("daemon_bug")
        raise found from error
    finally:
        if disk is not None:
            disk.close(clean=clean)
        store.close()


def _open_disk(role: Role, forest: Forest, log: structlog.typing.FilteringBoundLogger, *, follows: bool) -> OpenedTier | None:
    """Open the SSD tier; None where there can be none.

    A directory that must not be used as a cache is an error, unless this worker ``follows`` another: then it has mounts to serve, and
    serves them without rather than not at all.
    """
    config = role.config
    try:
        place = CachePlace(config.cache)
    except ImageFSError as error:
        if isinstance(error, StoreFullError) or follows:
            log.warning("cache_unusable", error=error.message)
            return None
        if isinstance(error, DaemonError) and role.mountpoint is not None:
            # Without root each mount has a daemon: the first of them has the disk, the others have memory and the store.
            log.warning("cache_in_use", error=error.message)
            return None
        raise
    try:
        return OpenedTier(
            place,
            log,
            limit=config.cache_bytes,
            floor=config.cache_floor,
            mounted=lambda: [slot.image.objects for slot in list(forest.slots.values())],
            lives_on=follows,
        )
    except StoreError as error:
        place.close()
        log.warning("cache_unusable", error=error.message)
        return None


class _Worker:
    """Puts the parts together and runs them."""

    def __init__(
        self,
        told: _Told,
        past: Past,
        store: LazyStore,
        forest: Forest,
        *,
        disk: OpenedTier | None,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._role = told.role
        self._lifeline = told.lifeline
        self._listener = told.listener
        self._past = past
        self._store = store
        self._table = MountTable(told.role.directory / TABLE_NAME)
        self._forest = forest
        self._disk = disk
        self._log = log
        self._counters = ReadCounters()
        self._requests = Requests(log)
        self._readers = Readers()
        self._starts = Starts()
        self._start_counters = StartCounters()
        self._ram = RamCache(told.role.config.ram_bytes)
        self._link_counters = LinkCounters()
        self._link = Link(store, self._link_counters, log, deadline=told.role.config.store_deadline)
        self._reason: Reason | None = None
        self._leaving = trio.Event()
        self._accepting = trio.CancelScope()

    def _leave(self, reason: Reason) -> None:
        if self._reason is None:
            self._reason = reason
            self._leaving.set()

    def _stop(self) -> None:
        self._leave("stop")

    async def main(self) -> None:
        """Start, serve, leave."""
        begun = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lifeline.beat)
            nursery.start_soon(self._lifeline.listen, functools.partial(self._leave, "drain"), self._stop)
            tier = None
            if self._disk is not None:
                tier = self._disk.tier
                nursery.start_soon(self._disk.run)
            ram = self._ram
            pressure = Pressure.of_this_process(self._role.config.ram_bytes, lambda: ram.used)
            nursery.start_soon(self._follow, pressure, ram.set_limit)
            deadline = self._role.config.store_deadline
            fetcher = Fetcher(nursery, self._link, self._ram, tier, self._counters, log=self._log, deadline=deadline, starts=self._starts)
            reading = Reading(fetcher, self._counters, self._readers, self._starts)
            if self._disk is not None:
                self._scrub(nursery, self._disk, fetcher)
            session = FuseSession(nursery, self._forest, reading, self._requests, lender=self._lifeline, log=self._log)
            try:
                mounter = await self._mounter(nursery, session)
                service = self._service(mounter, fetcher.prefetches)
                self._remember(nursery, fetcher, reading, service)
                nursery.start_soon(serve_control, self._listener, service.handle, service.after_answer, self._log, self._accepting)
                nursery.start_soon(functools.partial(service.patrol, every=_PATROL_SECONDS, patience=_PATIENCE_SECONDS))
                nursery.start_soon(self._signals)
                nursery.start_soon(self._exporter(service).run)
                lease = self._lease(service)
                nursery.start_soon(lease.run)
                self._log.info(
                    "started",
                    pid=os.getpid(),
                    store=self._role.config.store,
                    restarts=self._past.restarts,
                    seconds=round(time.monotonic() - begun, 3),
                )
                self._lifeline.say("ready")
                await self._leaving.wait()
                await self._farewell(session, mounter, service, lease)
            finally:
                # What this worker does not answer is the next one's to answer: nobody is told an error because this one ends.
                with trio.CancelScope(shield=True):
                    await session.leave(answer=False)
                nursery.cancel_scope.cancel()
                self._log.info("stopped", reason=self._reason)

    async def _farewell(self, session: FuseSession, mounter: Mounter, service: Service, lease: MountLease) -> None:
        if self._reason == "stop":
            self._lifeline.say("stop")
            service.stopping = True
            remove_socket(self._role.directory)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _SHUTDOWN_SECONDS):
                await mounter.shutdown()
                if service.recorder is not None:
                    await service.recorder.shutdown()
                await lease.drop()
            return
        self._accepting.cancel()
        lease.leave()
        if self._disk is not None:
            # What is not on the disk by then has to be fetched again. Readers are served meanwhile.
            with trio.move_on_after(_SETTLE_SECONDS):
                await self._disk.tier.settled()
        await session.leave(answer=True)
        mounter.hand_on()

    async def _follow(self, pressure: Pressure, set_limit: Callable[[int], None]) -> None:
        try:
            await follow(pressure, set_limit)
        except Exception:  # noqa: BLE001 # the bound stays as it is; mounts go on
            self._log.exception("pressure_bug")

    async def _mounter(self, nursery: trio.Nursery, session: FuseSession) -> Mounter:
        """Serve what a worker before this one had mounted, if there was one."""
        role, table, cache = self._role, self._table, self._role.config.cache
        images = await restored(cache, table, self._log)
        patient = PatientReads(self._store, role.config.store_deadline)
        if role.mountpoint is not None:
            single = SingleMounter(session, self._forest, table, role.mountpoint, stop=self._stop, log=self._log)
            for slot in table.images().keys() - images.keys():
                # Without it there is nothing to serve.
                images[slot] = await in_thread(open_image, patient, cache, table.images()[slot])
            await single.resume(images)
            return single
        fuse = role.fuse
        kernel = KernelMounts(role.trees, fuse, cache) if self._disk is not None else None
        mounter = RootMounter(session, self._forest, table, fuse, number=self._past.restarts, kernel=kernel, log=self._log)
        mounter.resume(images)
        await session.start(self._connection_lost)
        if mounter.missing():
            nursery.start_soon(bring_missing, mounter.missing, mounter.show_late, self._store, cache, self._log)
        if self._disk is not None:
            nursery.start_soon(settle_mounts, mounter, self._disk.tier, self._forest, self._log)
        entry = mount_at(fuse)
        if entry is not None:
            await session.tune(entry.device)
        return mounter

    def _connection_lost(self) -> None:
        """Nobody but an administrator ends the connection below the instance's directory: by ``abort``, or by unmounting it."""
        self._log.error("connection_lost", mounts=len(self._table))
        self._stop()

    def _scrub(self, nursery: trio.Nursery, disk: OpenedTier, fetcher: Fetcher) -> None:
        period = self._role.config.scrub_days * 86400
        nursery.start_soon(Scrubber(disk.checker, disk.index, disk.tier, self._log, period=period).run)
        nursery.start_soon(heal, disk.tier.withdrawn, self._forest, fetcher, self._log)

    def _service(self, mounter: Mounter, prefetches: Prefetches) -> Service:
        tier = self._disk.tier if self._disk is not None else None
        link, state = self._link_counters, self._link.state
        restarts = self._past.restarts
        held = (self._counters, link, self._ram, tier, self._requests, self._forest, self._table)
        sources = Sources(*held, state, restarts, self._readers, prefetches, self._start_counters)
        service = Service(
            self._role.config,
            self._store,
            sources,
            mounter,
            self._log,
            self._stop,
            self._lifeline.reload,
            self._past,
            OpenImages(self._store, self._role.config.cache, self._role.config.store_deadline),
            directory=self._role.directory,
            auto_stop=self._role.auto_stop or self._role.mountpoint is not None,
            started_at=time.time(),
            last_mount=trio.current_time(),
        )
        if self._disk is not None:
            service.names = ResolvedNames(self._role.config.cache / "names", self._no_names)
            service.caching = CacheService(self._disk, service.resolve, self._bring)
        return service

    def _remember(self, nursery: trio.Nursery, fetcher: Fetcher, reading: Reading, service: Service) -> None:
        """Have starts recorded, and what they will need fetched ahead."""
        config = self._role.config
        publisher, known = publisher_of(config.cache, self._store, self._start_counters, self._log, busy=lambda: not self._link.is_idle)
        nursery.start_soon(publisher.run)
        profiles = HostProfiles(self._store, known)
        relatives = Relatives(profiles, lambda: service.names, self._store)
        rate = config.complete_bytes_per_second
        completion = fetcher.completion(rate) if rate else None
        prefetching = Prefetching(nursery, fetcher.prefetches, profiles, relatives, completion=completion, log=self._log)
        service.prefetching = prefetching
        if self._disk is not None:
            service.warmer = Warmer(nursery, Warming(fetcher.prefetches, self._disk.tier, patience=2 * config.store_deadline))
        prefetching.resume({slot.number: slot.image for slot in self._forest.slots.values()}, self._table)
        service.recorder = Recorder(
            nursery,
            reading,
            self._table,
            publisher,
            cache=config.cache,
            counters=(self._counters, self._link_counters, self._start_counters),
            restarts=self._past.restarts,
            previous=profiles.kept,
            onlooker=prefetching,
            log=self._log,
        )

    def _exporter(self, service: Service) -> Exporter:
        return Exporter(self._role.directory, self._role.config.metrics_listen, lambda: exposition(stats(service.sources)), self._log)

    def _lease(self, service: Service) -> MountLease:
        def shown() -> set[str]:
            warming = service.warmer.under_way() if service.warmer is not None else set()
            return {slot.image.name for slot in self._forest.slots.values()} | set(self._table.images().values()) | warming

        return MountLease(self._store, self._role.directory / LEASE_NAME, shown, self._log, busy=lambda: not self._link.is_idle)

    def _no_names(self, error: Exception) -> None:
        self._log.warning("names_unusable", error=str(error))

    def _bring(self, manifest: str) -> None:
        """Bring an image's index to this host. Blocks."""
        bring_index(self._store, self._role.config.cache, manifest)

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for number in signals:
                self._log.info("signal", number=number)
                self._stop()


if __name__ == "__main__":
    main()
