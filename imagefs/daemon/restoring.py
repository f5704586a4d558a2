"""Opening again what a worker before this one had mounted: from what is on this host, without the store.

The index of an image that was mounted is in the cache, and is verified when it is opened, as at each mount. One that is not whole there any
more is brought from the store in the background, as often as it takes; until then its files cannot be reached, and those of others can.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
import trio

from imagefs.cache.image import Image, open_image
from imagefs.errors import ImageFSError, NotFoundError
from imagefs.mount.table import MountTable
from imagefs.store.base import BlobSource, ByteRange, KeyInfo, Start

_AT_ONCE: Final = 4
_AGAIN_SECONDS: Final = 5.0


class Nowhere:
    """A source of blobs that has none: what is to be opened must be on this host."""

    def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        """Have nothing."""
        del byte_range
        raise NotFoundError(f"{key} is not on this host")

    def start(self, key: str, most: int) -> Start:
        """Have nothing."""
        del most
        raise NotFoundError(f"{key} is not on this host")

    def head(self, key: str) -> KeyInfo:
        """Have nothing."""
        raise NotFoundError(f"{key} is not on this host")


async def restored(cache: Path, table: MountTable, log: structlog.typing.FilteringBoundLogger) -> dict[int, Image]:
    """Open the images that have a slot in ``table`` and are on this host; return them by slot."""
    found: dict[int, Image] = {}
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def restore(slot: int, manifest: str) -> None:
        try:
            found[slot] = await trio.to_thread.run_sync(open_image, Nowhere(), cache, manifest, limiter=limiter)
        except ImageFSError as error:
            _tell(log, slot, manifest, error)

    async with trio.open_nursery() as nursery:
        for slot, manifest in table.images().items():
            nursery.start_soon(restore, slot, manifest)
    return found


async def bring_missing(
    missing: Callable[[], Mapping[int, str]],
    show: Callable[[int, Image], None],
    store: BlobSource,
    cache: Path,
    log: structlog.typing.FilteringBoundLogger,
) -> None:
    """Bring the images that are ``missing``, by slot, from the store, and ``show`` each; until none is missing any more."""
    while lacking := missing():
        for slot, manifest in lacking.items():
            try:
                image = await trio.to_thread.run_sync(open_image, store, cache, manifest, abandon_on_cancel=True)
            except ImageFSError as error:
                _tell(log, slot, manifest, error)
            else:
                if slot in missing():
                    show(slot, image)
        await trio.sleep(_AGAIN_SECONDS)


def _tell(log: structlog.typing.FilteringBoundLogger, slot: int, manifest: str, error: ImageFSError) -> None:
    log.error("image_not_restored", manifest=manifest, slot=slot, error=error.message)
