"""What was found damaged on SSD is fetched again, for images that are mounted; of other images, whoever reads it next fetches it.

One object at a time, as prefetch: who waits for something else goes first. That it cannot be had now is no trouble of anybody's: without it
the daemon answers for it, as it did before it was there. What does not live here: finding what is damaged (``imagefs.cache.checks``).
"""

from collections.abc import AsyncIterable

import structlog

from imagefs.cache.fetcher import Fetcher
from imagefs.cache.layout import ObjectRecord
from imagefs.errors import ImageFSError
from imagefs.fuse.forest import Forest


async def heal(withdrawn: AsyncIterable[bytes], forest: Forest, fetcher: Fetcher, log: structlog.typing.FilteringBoundLogger) -> None:
    """Fetch again what is ``withdrawn``, by name, until cancelled."""
    async for name in withdrawn:
        found = [(slot, row) for slot in forest.slots.values() if (row := slot.image.objects.find(name)) is not None]
        images = [slot.image.name for slot, _ in found]
        if not found:
            continue
        slot, row = found[0]
        try:
            await fetcher.bring(ObjectRecord(slot.image, row))
        except ImageFSError as error:
            log.warning("object_not_fetched_again", object=name.hex(), images=images, error=error.message)
        except Exception:
            log.exception("healing_bug", object=name.hex())
        else:
            log.info("object_fetched_again", object=name.hex(), images=images)
