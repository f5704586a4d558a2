"""When kernel mounts look anew where the content of their files is.

An overlay keeps, as long as it keeps a file's inode, to the layer where it found the content: a file that was opened while its object was
still on its way is asked of the daemon for ever, and an object that was evicted keeps its room on the disk. Settling ends both
(``imagefs.mount.kernel.settle``), but for what is open in that moment, of which the next opens are asked for here again.

It costs the kernel's unused directory entries of that mount. So it is done when a burst is over: when for a second nothing was promoted,
evicted, or opened here that SSD has, or after ten seconds of a burst that does not end; and where one is soon followed by the next, because
something stays open that is opened again and again, less and less often. What was found damaged waits ten seconds at most.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from imagefs.cache.disk import DiskTier
from imagefs.daemon.mounter import RootMounter
from imagefs.format.objectmap import ObjectRow
from imagefs.fuse.forest import Forest

_QUIET: Final = 1.0
_LONG: Final = 10.0
_PAUSE_MAX: Final = 300.0


async def settle_mounts(mounter: RootMounter, tier: DiskTier, forest: Forest, log: structlog.typing.FilteringBoundLogger) -> None:
    """Settle the mounts of a daemon when what was promoted to ``tier``, evicted from it or opened too early for it is over."""
    counters = tier.counters

    def is_local(row: ObjectRow) -> bool:
        return tier.is_native(row.digest, row.size)

    async def settle() -> None:
        await mounter.settle(is_local)

    def changes() -> int:
        return counters.completed_files + counters.cleared_files + counters.evicted_files + forest.late_opens

    await settle_when_quiet(changes, settle, log, urgent=lambda: counters.withdrawn_files)


async def settle_when_quiet(
    changes: Callable[[], int],
    settle: Callable[[], Awaitable[None]],
    log: structlog.typing.FilteringBoundLogger,
    *,
    urgent: Callable[[], int] = lambda: 0,
) -> None:
    """Call ``settle`` when ``changes``, a count that only grows, has changed and stands still again, or soon when ``urgent`` has grown."""
    settled = last = changes()
    hurried = urgent()
    begun: float | None = None
    pause, settled_at = _QUIET, trio.current_time()
    while True:
        await trio.sleep(_QUIET)
        now, time, asked = changes(), trio.current_time(), urgent()
        is_urgent = asked != hurried and time - settled_at >= min(pause, _LONG)
        if now == settled and not is_urgent:
            begun = None
            if time - settled_at > 2 * pause:
                pause = _QUIET
        else:
            begun = begun or time
            if is_urgent or (time - settled_at >= pause and (now == last or time - begun >= _LONG)):
                pause = min(2 * pause, _PAUSE_MAX)
                try:
                    await settle()
                except Exception:
                    log.exception("settling_bug")
                settled, hurried, settled_at, begun = now, asked, trio.current_time(), None
        last = now
