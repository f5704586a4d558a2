"""The SSD tier without a daemon: opened by a command for itself, for the length of one question."""

import sys
from collections.abc import Mapping
from typing import Any

import structlog
import trio

from imagefs.cache.disk_open import OpenedTier
from imagefs.cache.disk_place import CachePlace
from imagefs.cache.index import bring_index
from imagefs.config import Config
from imagefs.daemon.caching import CacheService
from imagefs.daemon.requests import Cache
from imagefs.errors import ImageFSError
from imagefs.store.lazy import LazyStore
from imagefs.store.refs import resolve


def ask_here(config: Config, action: str, fields: Mapping[str, Any]) -> dict[str, object]:
    """Open the cache, do what is asked, and close it. Raises an ``ImageFSError``."""
    place = CachePlace(config.cache)
    try:
        # Standard output is for what was asked: with --json for one document alone.
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        opened = OpenedTier(place, log, limit=config.cache_bytes, floor=config.cache_floor)
    except BaseException:
        place.close()
        raise
    store = LazyStore(config.store)
    service = CacheService(
        opened,
        resolve=lambda ref: resolve(store, ref),
        bring=lambda manifest: bring_index(store, config.cache, manifest),
    )
    answers: list[dict[str, object] | ImageFSError] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.run)
            try:
                answers.append(await service.handle(Cache(action=action, **fields)))
                await opened.tier.settled()
            except ImageFSError as error:
                # What was asked for cannot be done; the cache is as sound as it was.
                answers.insert(0, error)
            nursery.cancel_scope.cancel()

    clean = False
    try:
        trio.run(main)
        clean = True
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from None
        raise
    finally:
        opened.close(clean=clean)
        store.close()
    if isinstance(answers[0], ImageFSError):
        raise answers[0]
    return answers[0]
