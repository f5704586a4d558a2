"""Which files of the SSD tier belong to images that are mounted, or pinned.

Nothing is kept a file: an object is looked up in the images' object maps, which lie on this host; a frame in a set of short names that is
made when it is first asked for. Asked by the eviction, in a thread.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from imagefs.cache.disk_files import FRAME
from imagefs.cache.disk_index import DiskIndex, Row
from imagefs.errors import ImageFSError
from imagefs.format.manifest import decode
from imagefs.format.objectmap import ObjectMap

_SHORT: Final = 8
"""Bytes of a digest that stand for it here: two frames that share them are protected together, which does no harm."""


class Holding:
    """What one image has."""

    __slots__ = ("_frames", "_objects")

    def __init__(self, objects: ObjectMap) -> None:
        """``objects`` may be closed meanwhile: then the image has nothing."""
        self._objects = objects
        self._frames: frozenset[bytes] | None = None

    def has(self, name: bytes, row: Row) -> bool:
        """Say whether the image has this file."""
        try:
            if row.kind != FRAME:
                return self._objects.find(name) is not None
            if self._frames is None:
                self._frames = frozenset(self._objects.frame(number).digest[:_SHORT] for number in range(self._objects.frame_count))
            return name[:_SHORT] in self._frames
        except (ValueError, ImageFSError):
            return False


class Holdings:
    """What the mounted and the pinned images have. ``Protection`` of the eviction."""

    def __init__(self, cache: Path, index: DiskIndex, mounted: Callable[[], Iterable[tuple[str, ObjectMap]]]) -> None:
        """``mounted`` gives the mounted images: manifest and object map."""
        self._cache = cache
        self._index = index
        self._mounted = mounted
        self._known: dict[str, Holding] = {}

    def mounted(self, name: bytes, row: Row) -> bool:
        """Say whether a mounted image has this file."""
        return any(self._of(manifest, objects).has(name, row) for manifest, objects in self._mounted())

    def pinned(self, name: bytes, row: Row) -> bool:
        """Say whether a pinned image has this file."""
        pins = self._index.pins()
        if not pins:
            return False
        holdings = (self._pin(manifest) for manifest in pins)
        return any(holding is not None and holding.has(name, row) for holding in holdings)

    def _of(self, manifest: str, objects: ObjectMap) -> Holding:
        holding = self._known.get(manifest)
        if holding is None or holding._objects is not objects:  # noqa: SLF001 # the class is of this module
            holding = self._known[manifest] = Holding(objects)
        return holding

    def _pin(self, manifest: str) -> Holding | None:
        key = f"pin:{manifest}"
        holding = self._known.get(key)
        if holding is None:
            objects = local_objects(self._cache, manifest)
            if objects is not None:
                holding = self._known[key] = Holding(objects)
        return holding


def local_objects(cache: Path, manifest: str) -> ObjectMap | None:
    """Return the object map of an image whose index is on this host, None if it is not."""
    folder = cache / "index"
    with contextlib.suppress(OSError, ValueError, ImageFSError):
        document = decode((folder / manifest).read_bytes())
        with (folder / document.objects.digest).open("rb") as file:
            return ObjectMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return None
