"""The lease by which a daemon tells its store which images it shows, so that who deletes what nothing names leaves them alone.

Nobody waits for it: every few seconds it is looked what is shown. The lease is written when it lacks an image, and well before it ends;
a write waits a while for who reads. An image that is shown no more stays named until the lease is written again, and where nothing is shown
there is none. A store that may only be read gets no lease, and one that is away gets it later; that is told once.

The lease is the daemon's, and not one worker's: its name lies in the daemon's directory, for the next worker to go on with. It is deleted
when the daemon is told to stop. Of one that was killed it ends by itself, or the next daemon of that directory ends it.

Belongs to the trio thread; what blocks runs in a thread, one at a time. What does not live here: what a lease is
(``imagefs.store.leases``).
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.errors import AccessError, ImageFSError
from imagefs.store.base import ObjectStore
from imagefs.store.leases import MOUNT_LIFE, RENEWALS, Lease

LEASE_NAME: Final = "lease"
"""The file in the daemon's directory."""

LOOK_SECONDS: Final = 5.0
"""How often it is looked what is shown."""

_PATIENCE: Final = 30.0
_PAUSE: Final = 0.1
_AGAIN: Final = 60.0
_FAREWELL_SECONDS: Final = 2.0
_NAME: Final = re.compile(r"[0-9a-f]{32}")


class MountLease:
    """See the module."""

    def __init__(
        self,
        store: ObjectStore,
        path: Path,
        shown: Callable[[], set[str]],
        log: structlog.typing.FilteringBoundLogger,
        *,
        busy: Callable[[], bool],
        life: float = MOUNT_LIFE,
        look: float = LOOK_SECONDS,
        again: float = _AGAIN,
    ) -> None:
        """``path`` keeps the lease's name. ``shown`` returns the manifests in use; ``busy`` says whether a reader waits for the link.

        The lease lasts ``life`` seconds; what is shown is looked at every ``look`` seconds, and a store that fails asked ``again`` later.
        """
        self._path = path
        self._shown = shown
        self._log = log
        self._busy = busy
        self._life = life
        self._look = look
        self._again = again
        name = _kept(path)
        self._lease = Lease(store, "mount", life=life, name=name)
        # What a process before this one has named is not known: at the first look it is written, or deleted.
        self._is_there = name is not None
        self._named: set[str] = set()
        self._renew_at = 0.0
        self._not_before = 0.0
        self._told = False
        self._over = False
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Keep it up until cancelled."""
        while True:
            await trio.sleep(self._look)
            try:
                async with self._lock:
                    await self._keep_up()
            except Exception:  # noqa: BLE001 # mounts are not concerned
                self._log.exception("lease_bug")
                self._not_before = trio.current_time() + self._again

    async def drop(self) -> None:
        """Give it up for good. In a moment or not at all: it ends by itself."""
        self._over = True
        with trio.move_on_after(_FAREWELL_SECONDS):
            # A write that is under way comes first.
            async with self._lock:
                await self._end()

    def leave(self) -> None:
        """Leave it to the next worker, which goes on with it."""
        self._over = True

    async def _keep_up(self) -> None:
        if self._over or trio.current_time() < self._not_before:
            return
        shown = self._shown()
        if not shown:
            await self._end()
        elif not shown <= self._named or trio.current_time() >= self._renew_at:
            with trio.move_on_after(_PATIENCE):
                while self._busy():  # noqa: ASYNC110 # the link tells of nothing that could be waited for
                    await trio.sleep(_PAUSE)
            # Once more: others may have come meanwhile.
            await self._write(self._shown())

    async def _write(self, shown: set[str]) -> None:
        pause = self._life / RENEWALS
        try:
            await trio.to_thread.run_sync(self._lease.write, shown, abandon_on_cancel=True)
        except ImageFSError as error:
            if not self._told:
                self._told = True
                self._log.info("lease_not_written", error=error.message)
            self._not_before = trio.current_time() + (pause if isinstance(error, AccessError) else self._again)
            return
        self._told = False
        self._named = shown
        self._renew_at = trio.current_time() + pause
        if not self._is_there:
            self._is_there = True
            with suppress(OSError):
                self._path.write_text(self._lease.name)

    async def _end(self) -> None:
        if not self._is_there:
            return
        try:
            await trio.to_thread.run_sync(self._lease.drop, abandon_on_cancel=True)
        except ImageFSError:
            self._not_before = trio.current_time() + self._again
            return
        self._is_there = False
        self._named = set()
        with suppress(OSError):
            self._path.unlink()


def _kept(path: Path) -> str | None:
    """Return the name that a process before this one has left, if it has."""
    with suppress(OSError, UnicodeDecodeError):
        name = path.read_text()
        if _NAME.fullmatch(name):
            return name
    return None
