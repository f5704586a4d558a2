"""Making this host warm for whole images: who has asked for which, and how far that is.

One that is under way is joined by whoever asks for it again, so to ask is also to look how far it is. It needs no mount; while it runs, the
daemon does not end by itself.

All of it belongs to the trio thread. What does not live here: the fetching (``imagefs.cache.warming``).
"""

from collections import OrderedDict
from typing import Final

import trio

from imagefs.cache.image import Image
from imagefs.cache.warming import Warming, Warmth

_KNOWN_MAX: Final = 64


class Warmer:
    """See the module."""

    def __init__(self, nursery: trio.Nursery, warming: Warming) -> None:
        """Tasks belong to ``nursery``."""
        self._nursery = nursery
        self._warming = warming
        # The last that were asked for, by manifest, the newest last.
        self._known: OrderedDict[str, Warmth] = OrderedDict()

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return bool(self.under_way())

    def under_way(self) -> set[str]:
        """Return the manifests of the images that are being brought."""
        return {name for name, warmth in self._known.items() if not warmth.is_over}

    def of(self, manifest: str) -> Warmth | None:
        """Return how far an image is that somebody asked for."""
        return self._known.get(manifest)

    def begin(self, image: Image) -> Warmth:
        """Bring an image, unless that is under way."""
        running = self._known.get(image.name)
        if running is not None and not running.is_over:
            return running
        over = [name for name, warmth in self._known.items() if warmth.is_over]
        for name in over[: max(0, len(self._known) - _KNOWN_MAX)]:
            del self._known[name]
        warmth = self._known[image.name] = Warmth()
        self._known.move_to_end(image.name)
        self._nursery.start_soon(self._warming.run, image, warmth)
        return warmth
