"""Which files of the SSD tier belong to images that are mounted, or pinned.

Nothing is kept a file: an object is looked up in the images' object maps, which lie on this host. Asked by the eviction, in a thread.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path

from imagefs.cache.disk_index import DiskIndex
from imagefs.errors import ImageFSError
from imagefs.format.manifest import decode
from imagefs.format.objectmap import ObjectMap


class Holdings:
    """What the mounted and the pinned images have. ``Protection`` of the eviction."""

    def __init__(self, cache: Path, index: DiskIndex, mounted: Callable[[], Iterable[ObjectMap]]) -> None:
        """``mounted`` gives the object maps of the mounted images."""
        self._cache = cache
        self._index = index
        self._mounted = mounted
        self._pins: dict[str, ObjectMap] = {}

    def mounted(self, name: bytes) -> bool:
        """Say whether a mounted image has this object."""
        return any(_has(objects, name) for objects in self._mounted())

    def pinned(self, name: bytes) -> bool:
        """Say whether a pinned image has this object."""
        return any(_has(objects, name) for objects in map(self._pin, self._index.pins()) if objects is not None)

    def _pin(self, manifest: str) -> ObjectMap | None:
        objects = self._pins.get(manifest) or local_objects(self._cache, manifest)
        if objects is not None:
            self._pins[manifest] = objects
        return objects


def _has(objects: ObjectMap, name: bytes) -> bool:
    # A map may be closed meanwhile: then the image has nothing.
    with contextlib.suppress(ValueError, ImageFSError):
        return objects.find(name) is not None
    return False


def local_objects(cache: Path, manifest: str) -> ObjectMap | None:
    """Return the object map of an image whose index is on this host, None if it is not."""
    folder = cache / "index"
    with contextlib.suppress(OSError, ValueError, ImageFSError):
        document = decode((folder / manifest).read_bytes())
        with (folder / document.objects.digest).open("rb") as file:
            return ObjectMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return None
