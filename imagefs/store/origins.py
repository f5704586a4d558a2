"""Which image an optimized one was made from, as far as the store bears it out."""

from imagefs.errors import IntegrityError, NotFoundError, UnsupportedError
from imagefs.format import optimized
from imagefs.format.manifest import Manifest
from imagefs.store.base import BlobSource
from imagefs.store.images import get_manifest


def origin_of(store: BlobSource, name: str, manifest: Manifest) -> tuple[str, Manifest]:
    """Return the hex digest and the manifest of the origin of image ``name``: of itself if it is not optimized.

    Also of itself if the store does not have the origin any more, or if that is another tree: annotations are anybody's.
    """
    found = optimized.read(manifest.annotations)
    if found is None or found.origin == name:
        return name, manifest
    try:
        origin = get_manifest(store, found.origin)
    except (NotFoundError, IntegrityError, UnsupportedError):
        return name, manifest
    return (found.origin, origin) if origin.tree == manifest.tree else (name, manifest)
