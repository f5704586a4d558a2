"""When what came is on SSD as well, RAM has its room back: for those who bring whole images, of which nobody waits for anything."""

import trio

from imagefs.cache.pieces import Frames
from imagefs.cache.ram import RamCache


async def landed(wanted: Frames, ram: RamCache, *, look: float, patience: float) -> None:
    """Let go of frames that came, but for what a reader has come for, as soon as SSD has all of them, or after ``patience`` seconds.

    ``look``: how often it is looked whether it has, in seconds. Belongs to the trio thread.
    """
    slabs = {part.slab for (part, _), _ in wanted if part.slab is not None}
    with trio.move_on_after(patience):
        while any(slab.unsaved for slab in slabs):  # noqa: ASYNC110 # the tier tells each slab, and nobody else
            await trio.sleep(look)
    for slab in slabs:
        if slab.unread and not slab.in_flight and not slab.unsaved and not slab.due:
            ram.drop(slab)
