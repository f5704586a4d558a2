"""What the store has already: the packs of its images, found by the run of frames that they hold, objects, and which layers were checked.

A converter that meets the same run of frames again takes pack, offsets and lengths from an older image's object map instead of
compressing. This changes the work, never the result: the same run gives the same pack on every machine.

Invariants: filled before the first :meth:`KnownPacks.find` and read-only afterwards, so workers need no lock. Object maps lie in a scratch
file each and are read in place; memory is one dictionary entry a pack. A damaged or missing map costs its savings and nothing else.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from imagefs.convert.stored import StoredObject, find_stored
from imagefs.errors import ImageFSError, IntegrityError
from imagefs.format import optimized
from imagefs.format.manifest import IMAGE, Manifest
from imagefs.format.objectmap import ObjectMap
from imagefs.format.pack import FrameEntry, pack_key_of
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.images import fetch_blob_to, get_manifest

MANIFESTS_MAX: Final = 64
"""The newest images that are looked at: a bound on time and scratch space in a store of thousands."""

_AT_ONCE: Final = 8


class KnownPacks:
    """An index over the packs of the newest images in a store."""

    def __init__(self, store: ObjectStore) -> None:
        """Know nothing yet."""
        self._store = store
        self._rows: dict[bytes, tuple[ObjectMap, int]] = {}
        # The newest image's first, each with the layers that it was made from.
        self._maps: list[tuple[ObjectMap, frozenset[str]]] = []
        self._diff_ids: dict[str, str] = {}

    @classmethod
    def load(cls, store: ObjectStore, scratch: Path) -> "KnownPacks":
        """Read the maps of the newest images into ``scratch`` (an existing private directory)."""
        known = cls(store)
        newest = sorted(store.list("manifests/"), key=lambda info: (-info.mtime, info.key))[:MANIFESTS_MAX]
        # Each image takes four requests: one after the other they would take longer than a small conversion, if the store is far away.
        bring = partial(_bring, store, scratch, threading.Event())
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="known") as pool:
            for image in pool.map(bring, (info.key.removeprefix("manifests/") for info in newest)):
                if image is None:
                    continue
                manifest, path = image
                # One that cannot be read is fsck's business; converting another one must not depend on it.
                with contextlib.suppress(ImageFSError):
                    if path is not None:
                        known.add(path, frozenset(layer.digest for layer in manifest.layers))
                    known._diff_ids |= {layer.digest: layer.diff_id for layer in manifest.layers if layer.diff_id}
        return known

    @property
    def has_objects(self) -> bool:
        """Whether there is any image whose objects can be found."""
        return bool(self._maps)

    def add(self, path: Path, layers: frozenset[str] = frozenset()) -> None:
        """Index the object map in the file ``path``, and unlink it: the mapping keeps it, and a killed process leaves nothing.

        ``layers`` are the digests of those that the image was made from.
        """
        with path.open("rb") as file:
            object_map = ObjectMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        path.unlink()
        for number in range(object_map.pack_count):
            self._rows.setdefault(object_map.pack(number).key, (object_map, number))
        self._maps.append((object_map, layers))

    def finder(self, layer: str) -> "ObjectFinder":
        """Return what finds the objects of a layer, given by its digest: images that were made from it are asked first."""
        return ObjectFinder(found for found, _ in sorted(self._maps, key=lambda item: layer not in item[1]))

    def checked(self, digest: str, diff_id: str | None) -> bool:
        """Say whether a blob of this ``digest`` was found to have this ``diff_id`` when an image that the store has was made.

        The blob's digest settles its content, so what it unpacks to need not be hashed again: that is two fifths of the work of reading a
        layer. Were the store lied to, a config with a wrong diff-id would pass; content would still be what the digest says.
        """
        return diff_id is not None and self._diff_ids.get(digest) == diff_id

    def find(self, key: bytes) -> tuple[bytes, int, list[FrameEntry]] | None:
        """Return (digest, stored size, frames) of the pack with this ``key``, if it is known *and* still in the store."""
        row = self._rows.get(key)
        if row is None:
            return None
        object_map, number = row
        try:
            pack = object_map.pack(number)
            if self._store.head(pack_key(pack.digest.hex())).size != pack.size:
                return None
            frames = [object_map.frame(i) for i in range(pack.first_frame, pack.first_frame + pack.frame_count)]
        except ImageFSError:
            return None
        if pack_key_of(frame.digest for frame in frames) != key:
            return None
        return pack.digest, pack.size, [FrameEntry(f.digest, f.offset, f.stored, f.length, f.codec) for f in frames]


class ObjectFinder:
    """Looks for objects in known maps; the one that had the last is asked first. Belongs to one thread."""

    def __init__(self, maps: Iterable[ObjectMap]) -> None:
        """``maps`` in the order in which they are to be asked."""
        self._maps = list(maps)

    def find(self, digest: bytes, size: int) -> StoredObject | None:
        """Return where an object of ``size`` bytes lies, None if no image has it, or not as it would be cut today."""
        for number, object_map in enumerate(self._maps):
            try:
                found = find_stored(object_map, digest, size)
            except IntegrityError:
                continue
            if found is not None:
                if number:
                    self._maps.insert(0, self._maps.pop(number))
                return found
        return None


def _bring(store: ObjectStore, scratch: Path, stumbled: threading.Event, name: str) -> tuple[Manifest, Path | None] | None:
    """Return a manifest, and the file below ``scratch`` that its object map was brought to; None if they cannot be had.

    The map of an optimized image is not brought: what that has beyond its origin is compressed at a level of its own, and would change the
    result of a conversion at another one. Nor is that of a snapshot, for the same reason.

    Once the store has ``stumbled`` it is not asked any more: what the other maps would save is not worth their waits.
    """
    if stumbled.is_set():
        return None
    try:
        manifest = get_manifest(store, name)
        if manifest.kind != IMAGE or optimized.read(manifest.annotations) is not None:
            return manifest, None
        # Named by the image: several may have the same map.
        path = scratch / name
        fetch_blob_to(store, manifest.objects.digest, manifest.objects.size, path)
    except ImageFSError as error:
        if error.retryable:
            stumbled.set()
        return None
    return manifest, path
