"""A thread for work that is never urgent: the idle class of disk I/O, and the lowest priority of the CPU.

A thread of its own, because both stick to a thread, and the second cannot be taken back without rights. What does not live here: how much
work there is, which is its owner's to pace.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import trio

from imagefs.syscalls import ioprio_idle, nice_thread

_NICE: Final = 19
_T = TypeVar("_T")


class IdleThread:
    """Runs blocking calls, one after the other. The thread starts with the first."""

    def __init__(self) -> None:
        """Start without it."""
        self._pool = ThreadPoolExecutor(1, "imagefs-idle", initializer=_be_idle)

    async def __call__(self, function: Callable[..., _T], *args: object) -> _T:
        """Return what ``function`` returns, or raise what it raises. Not cancelled: it is waited for, so it should take moments."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def tell(_: object) -> None:
            # Whoever waited may be gone, with the whole of trio.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future = self._pool.submit(function, *args)
        future.add_done_callback(tell)
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False)


def _be_idle() -> None:
    # Where a sandbox forbids it, the pace is what keeps the work out of the way.
    with contextlib.suppress(OSError):
        ioprio_idle()
    with contextlib.suppress(OSError):
        nice_thread(_NICE)
