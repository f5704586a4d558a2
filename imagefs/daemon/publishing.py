"""Profiles on their way to the store: kept in ``<cache>/profiles/spool/`` until it has them, in the background.

A profile is a file there before anything is sent, so one that a daemon could not publish is the next one's to publish. Publishing the same
profile twice does no harm (``imagefs.store.profiles``). A store that is away is asked again when the next profile comes, when a daemon
starts, and every ten minutes; from one that may only be read nothing is expected: what was recorded stays with this host
(``imagefs.cache.profile_files``), which has it meanwhile in the other case too. Nobody waits for any of it, it waits for who reads, and it
is told of once. What is damaged in the spool is dropped.

Belongs to the trio thread; what blocks runs in a thread, one at a time.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.cache.counters import StartCounters
from imagefs.cache.profile_files import ProfileFiles
from imagefs.digest import digest_of
from imagefs.errors import AccessError, ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format.profile import MAX_PROFILE, Profile, decode, encode
from imagefs.store.base import ObjectStore
from imagefs.store.courtesy import Courteous
from imagefs.store.profiles import fetch_keys, publish

FOLDER: Final = "profiles/spool"
SPOOL_MAX: Final = 16
"""Profiles that wait, at most: the oldest goes."""

AGAIN_SECONDS: Final = 600.0

_DAMAGED: Final = (IntegrityError, UnsupportedError, LimitError)


class Spool:
    """The profiles that wait, the oldest first. Blocking functions, for threads."""

    def __init__(self, cache: Path) -> None:
        """Cheap: nothing is made yet."""
        self._folder = cache / FOLDER

    def add(self, profile: Profile) -> None:
        """Keep a profile until it is published. ``OSError``."""
        data = encode(profile)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / digest_of(data).hex()
        new = path.with_name(f".{secrets.token_hex(8)}")
        try:
            new.write_bytes(data)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        for old in self.waiting()[:-SPOOL_MAX]:
            self.drop(old)

    def waiting(self) -> list[Path]:
        """Return the files of those that wait."""
        found: list[tuple[int, str]] = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            found += ((entry.stat().st_mtime_ns, entry.name) for entry in entries if not entry.name.startswith("."))
        return [self._folder / name for _, name in sorted(found)]

    @staticmethod
    def read(path: Path) -> Profile:
        """Return one. ``OSError``; ``IntegrityError``, ``UnsupportedError`` or ``LimitError`` for what is none."""
        with path.open("rb") as file:
            return decode(file.read(MAX_PROFILE + 1))

    @staticmethod
    def drop(path: Path) -> None:
        """Let one go."""
        with suppress(OSError):
            path.unlink(missing_ok=True)


class Publisher:
    """Publishes what waits in a spool. Nothing is published before :meth:`run`."""

    def __init__(
        self,
        spool: Spool,
        publish: Callable[[Profile], str],
        keep_here: Callable[[Profile], None],
        counters: StartCounters,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``publish`` returns an id, or nothing where there was nothing new to tell; ``keep_here`` has this host use it. Both block."""
        self._spool = spool
        self._publish = publish
        self._keep_here = keep_here
        self._kept: set[str] = set()
        self._counters = counters
        self._log = log
        self._news = trio.Event()
        self._told: str | None = None
        self._lock = trio.Lock()

    async def add(self, profile: Profile) -> None:
        """Keep a profile, and have it published."""
        try:
            await trio.to_thread.run_sync(self._spool.add, profile)
        except (OSError, ImageFSError) as error:
            self._log.warning("profile_not_kept", manifest=profile.manifest, error=str(error))
            return
        self._news.set()

    async def run(self) -> None:
        """Publish what waits, and what comes, until cancelled."""
        while True:
            self._news = trio.Event()
            await self.drain()
            with trio.move_on_after(AGAIN_SECONDS):
                await self._news.wait()

    async def drain(self) -> None:
        """Publish what waits, as far as the store takes it."""
        async with self._lock:
            waiting = await trio.to_thread.run_sync(self._spool.waiting)
            for number, path in enumerate(waiting):
                self._counters.waiting = len(waiting) - number
                try:
                    if not await self._one(path):
                        return
                except Exception:  # noqa: BLE001 # the next one is to be published all the same
                    self._log.exception("publishing_bug", profile=path.name)
                    self._spool.drop(path)
            self._counters.waiting = 0

    async def _one(self, path: Path) -> bool:
        """Publish one; say whether the next may be tried."""
        try:
            profile = await trio.to_thread.run_sync(self._spool.read, path)
        except (*_DAMAGED, OSError) as error:
            self._log.warning("profile_dropped", profile=path.name, error=str(error))
            self._spool.drop(path)
            return True
        try:
            name = await trio.to_thread.run_sync(self._publish, profile, abandon_on_cancel=True)
        except _DAMAGED as error:
            self._log.warning("profile_dropped", profile=path.name, manifest=profile.manifest, error=error.message)
            self._spool.drop(path)
            return True
        except ImageFSError as error:
            self._tell(profile, error)
            if path.name not in self._kept:
                self._kept.add(path.name)
                await trio.to_thread.run_sync(self._keep_here, profile)
            if isinstance(error, AccessError):
                self._spool.drop(path)
            return isinstance(error, AccessError)
        self._told = None
        self._kept.discard(path.name)
        self._counters.published += 1
        self._spool.drop(path)
        self._log.info("profile_published", manifest=profile.manifest, profile=name, accesses=len(profile.accesses))
        return True

    def _tell(self, profile: Profile, error: ImageFSError) -> None:
        """Say once that the store does not take profiles, and for what kind of reason; again when that has changed."""
        kind = "read-only" if isinstance(error, AccessError) else "away"
        if self._told != kind:
            self._told = kind
            self._log.warning("profile_not_published", manifest=profile.manifest, error=error.message)


def publisher_of(
    cache: Path, store: ObjectStore, counters: StartCounters, log: structlog.typing.FilteringBoundLogger, *, busy: Callable[[], bool]
) -> tuple[Publisher, ProfileFiles]:
    """Return what publishes to a store from a cache directory, and what this host knows of profiles, which is kept up with that.

    ``busy`` says whether a reader waits for the link: then publishing waits.
    """

    def unusable(error: Exception) -> None:
        log.warning("profiles_unusable", error=str(error))

    known = ProfileFiles(cache, unusable)

    def published(profile: Profile) -> str:
        behind = Courteous(store, busy)
        name = publish(behind, profile)
        known.keep(profile.manifest, fetch_keys(behind, profile.manifest))
        known.forget_added(profile.manifest)
        return name

    return Publisher(Spool(cache), published, lambda profile: known.add(profile.manifest, profile), counters, log), known
