"""The tree the other way round: by which path an object is in an image."""

from collections.abc import Collection

from imagefs.format.erofs_reader import Tree

_DIRECTORY = 4
_FILE = 8


def object_paths(tree: Tree, wanted: Collection[bytes]) -> dict[bytes, bytes]:
    """Return for each of the raw digests ``wanted`` a path that has it, as bytes from ``/`` on: the first in the order of directories.

    Walks the whole tree, each directory once, until all are found: 2 us a name. What the image does not have is left out. Errors of
    the tree's reader.
    """
    missing = set(wanted)
    found: dict[bytes, bytes] = {}
    seen = {tree.root}
    pending = [(b"/", tree.root)]
    while pending and missing:
        folder, nid = pending.pop()
        below = []
        for name, child, kind, _ in tree.readdir(nid):
            if kind == _FILE:
                digest = tree.object_of(child)
                if digest in missing:
                    found[digest] = folder + name
                    missing.discard(digest)
            elif kind == _DIRECTORY and name not in {b".", b".."} and child not in seen:
                seen.add(child)
                below.append((folder + name + b"/", child))
        pending += reversed(below)
    return found
