"""An image that is open on this host: its tree, its object map, and where its bytes come from.

Nothing in it is a Python object a file: both are read in place from the mapped files. Reading is safe from any thread. The files are
unmapped when nobody refers to the image any more: a fetch that ends after the unmount still finds it. What does not live here: how the
files got here (``imagefs.cache.index``), and the frames.
"""

import mmap
from pathlib import Path

from imagefs.cache.index import bring_index
from imagefs.cache.members import Members
from imagefs.cache.neighbours import Neighbours
from imagefs.format.erofs_reader import Tree
from imagefs.format.manifest import Manifest
from imagefs.format.objectmap import ObjectMap
from imagefs.store.base import BlobSource


class Image:
    """A tree with its object map."""

    __slots__ = ("__weakref__", "_maps", "index_bytes", "manifest", "members", "moved", "name", "neighbours", "objects", "tree")

    def __init__(self, name: str, manifest: Manifest, tree: mmap.mmap, objects: mmap.mmap, moved: int) -> None:
        """``name`` is the manifest's hex digest; ``moved`` the bytes that came from the store to open it."""
        self.name = name
        self.manifest = manifest
        self.tree = Tree(tree)
        self.objects = ObjectMap(objects)
        self.neighbours = Neighbours(self.objects)
        self.members = Members(self.objects)
        self.index_bytes = len(tree) + len(objects)
        self.moved = moved
        self._maps = (tree, objects)

    def release_pages(self) -> None:
        """Give the mapped pages back to the page cache. They count as the daemon's memory otherwise, and come back at a soft fault."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def open_image(store: BlobSource, cache: Path, manifest_hex: str) -> Image:
    """Bring the image's index to this host and open it. Blocks; raises what ``bring_index`` does, ``IntegrityError`` for a bad index."""
    index = bring_index(store, cache, manifest_hex)
    return Image(manifest_hex, index.manifest, index.tree, index.objects, index.moved)
