"""After the machine has stopped: verify what the kernel is not served any more (``disk_suspects``), and give it its places again.

Invariants: a file gets its place only when all of it has the digest that is its name; what lies in ``objects/`` by then is never replaced
by what lies aside. As fast as the disk gives it, in the idle thread, and readers go first: what they ask for is looked at next.

Belongs to the trio thread. What does not live here: whether the machine has stopped (``disk_open``), and looking (``checks``).
"""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Final

import trio

from imagefs.cache.checks import Checker, Item, Verdict, batched
from imagefs.cache.disk import DiskLog, DiskTier
from imagefs.cache.disk_files import Folders
from imagefs.cache.disk_index import Row

_AGAIN: Final = 60.0


async def clear_suspects(folders: Folders, tier: DiskTier, checker: Checker, log: DiskLog) -> None:
    """Go through all suspects, until there are none."""
    begun = time.monotonic()
    cleared, damaged = tier.counters.cleared_files, tier.counters.damaged_files
    log.warning("cache_suspect")
    suspects = folders.suspects
    while suspects:
        shards = suspects.shards()
        while (names := await trio.to_thread.run_sync(next, shards, None)) is not None:
            for batch in batched(await trio.to_thread.run_sync(_sizes, folders, names)):
                if asked := list(suspects.asked()):
                    for wanted in batched(await trio.to_thread.run_sync(_sizes, folders, asked)):
                        await _clear(folders, tier, checker, wanted)
                await _clear(folders, tier, checker, batch)
        if suspects:
            # What could not even be opened, for want of descriptors perhaps. Readers get it from the daemon.
            await trio.sleep(_AGAIN)
    log.warning(
        "cache_cleared",
        files=tier.counters.cleared_files - cleared,
        damaged=tier.counters.damaged_files - damaged,
        seconds=round(time.monotonic() - begun, 1),
    )


async def _clear(folders: Folders, tier: DiskTier, checker: Checker, batch: Sequence[Item]) -> None:
    verdicts = await checker.look(batch, by="start")
    places = await trio.to_thread.run_sync(_act, folders, batch, verdicts)
    for (name, size), has_place in zip(batch, places, strict=True):
        if has_place:
            tier.counters.cleared_files += 1
            # Where the index was lost, or does not know how it became complete.
            tier.adopt(name, Row(complete=True, size=size, held=size, used_at=int(time.time())))


def _act(folders: Folders, batch: Sequence[Item], verdicts: Sequence[Verdict]) -> list[bool]:
    """Do with each what was found; return which have their places."""
    places = []
    for (name, _), verdict in zip(batch, verdicts, strict=True):
        has_place = False
        if verdict is Verdict.SOUND:
            # What cannot be moved now is served by the daemon, and stays for the next start.
            with contextlib.suppress(OSError):
                has_place = folders.clear(name)
        elif verdict is Verdict.DAMAGED:
            # One that the index does not know was not withdrawn.
            folders.suspects.remove(name)
        places.append(has_place)
    return places


def _sizes(folders: Folders, names: Sequence[bytes]) -> list[Item]:
    """Return the suspects among names with their sizes."""
    found = []
    for name in names:
        path = folders.suspects.path(name)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                found.append((name, os.stat(path).st_size))  # noqa: PTH116
    return found
