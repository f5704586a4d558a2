"""The SSD tier without a daemon: opened by a command for itself, for the length of one question."""

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
from imagefs.store.lazy import LazyStore
from imagefs.store.refs import resolve


def ask_here(config: Config, action: str, fields: Mapping[str, Any]) -> dict[str, object]:
    """Open the cache, do what is asked, and close it. Raises an ``ImageFSError``."""
    place = CachePlace(config.cache)
    try:
        opened = OpenedTier(place, structlog.get_logger(), limit=config.cache_bytes, floor=config.cache_floor)
    except BaseException:
        place.close()
        raise
    store = LazyStore(config.store)
    service = CacheService(
        opened,
        resolve=lambda ref: resolve(store, ref),
        bring=lambda manifest: bring_index(store, config.cache, manifest),
    )
    answers: list[dict[str, object]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.run)
            answers.append(await service.handle(Cache(action=action, **fields)))
            await opened.tier.settled()
            nursery.cancel_scope.cancel()

    clean = False
    try:
        trio.run(main, strict_exception_groups=False)
        clean = True
    finally:
        opened.close(clean=clean)
        store.close()
    return answers[0]
