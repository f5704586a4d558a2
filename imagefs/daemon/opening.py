"""The images that this daemon has open, each once, however many mounts ask for it at the same time.

What is open was verified when it was opened, and is mapped since: it is open for as long as anybody refers to it. Belongs to the trio
thread.
"""

from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import trio

from imagefs.cache.image import Image, open_image
from imagefs.errors import DeadlineError
from imagefs.store.base import ObjectStore
from imagefs.store.patient import PatientReads

_GRACE: Final = 0.5
"""Seconds beyond the store's deadline: it is told by whom the time was spent, if that is known."""


class OpenImages:
    """See the module."""

    def __init__(self, store: ObjectStore, cache: Path, deadline: float) -> None:
        """``deadline`` is for all of an index, in seconds."""
        self._store = store
        self._cache = cache
        self._deadline = deadline
        self._images: WeakValueDictionary[str, Image] = WeakValueDictionary()
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def open(self, manifest: str) -> tuple[Image, int]:
        """Return an image, and the bytes of its index that moved for that. Raises what ``open_image`` does, or ``DeadlineError``."""
        turn = self._turns.setdefault(manifest, trio.Lock())
        with trio.move_on_after(self._deadline + _GRACE):
            async with turn:
                image = self._images.get(manifest)
                if image is not None:
                    return image, 0
                source = PatientReads(self._store, self._deadline)
                image = await trio.to_thread.run_sync(open_image, source, self._cache, manifest, abandon_on_cancel=True)
                self._images[manifest] = image
                return image, image.moved
        raise DeadlineError(f"the image's index did not come within {self._deadline + _GRACE:g} s")
