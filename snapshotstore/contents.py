"""What a snapshot consists of, told from its index alone: its files, and of each memory file how much is zero, its own, or another's.

Nothing of the content is read: the tree names the files, the object map says where their bytes are.

Invariant: however damaged or large the tree and the map are, a walk ends, and holds a path, no longer than Linux has them, for each
directory that it has yet to enter; a map is looked at ``_LOOK`` extents at a time. ``IntegrityError`` where one is unsound.

What does not live here: what is in a record (``snapshotstore.manifest``), and whether the bytes are right (``snapshotstore.verifying``).
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from imagefs.errors import IntegrityError
from imagefs.format.erofs_reader import Tree
from imagefs.format.manifest import Manifest
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, ObjectRow
from imagefs.store.base import ObjectStore
from imagefs.store.images import get_blob
from snapshotstore.listing import Snapshot
from snapshotstore.repository import MEMORY

_LOOK: Final = 4096
_PATH_MAX: Final = 4096  # of Linux; a push names all that it reads by its path
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class File(NamedTuple):
    """One path, relative to the root; ``object`` is the raw digest of a regular file's content, None where it has none."""

    path: str
    kind: str
    mode: int
    size: int
    object: bytes | None

    @property
    def is_memory(self) -> bool:
        """Whether it is one of those that hold memory, page by page."""
        return self.object is not None and any(fnmatchcase(self.path, pattern) for pattern in MEMORY)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a memory file: ``zero`` are holes, ``own`` in frames that came with this snapshot, ``shared`` in those of older members.

    The latter two are None where the record does not say how much came with it.
    """

    size: int
    zero: int
    own: int | None
    shared: int | None


@dataclass(frozen=True, slots=True)
class Index:
    """A snapshot's tree and object map, verified."""

    snapshot: Snapshot
    tree: Tree
    objects: ObjectMap


def open_index(store: ObjectStore, snapshot: Snapshot) -> Index:
    """Bring the index of a snapshot. ``IntegrityError``, and what a store raises that is not well."""
    manifest: Manifest = snapshot.manifest
    tree = Tree(get_blob(store, manifest.tree.digest, manifest.tree.size))
    return Index(snapshot, tree, ObjectMap(get_blob(store, manifest.objects.digest, manifest.objects.size)))


def files(tree: Tree) -> Iterator[File]:
    """Yield all paths below the root, each directory before what is in it."""
    seen = {tree.root}
    pending = [("", tree.root)]
    while pending:
        folder, nid = pending.pop()
        below = []
        for name, child, _, _ in tree.readdir(nid):
            if name in {b".", b".."}:
                continue
            found = tree.stat(child)
            kind = _KINDS.get(stat.S_IFMT(found.mode), "?")
            path = folder + os.fsdecode(name)
            if len(path) > _PATH_MAX:
                raise IntegrityError(f"the tree has a path of more than {_PATH_MAX} characters, which none that was pushed can have")
            yield File(path, kind, stat.S_IMODE(found.mode), found.size, tree.object_of(child) if kind == "file" else None)
            if kind == "directory" and child not in seen:
                seen.add(child)
                below.append((f"{path}/", child))
        pending += reversed(below)


def extents(objects: ObjectMap, row: ObjectRow) -> Iterator[Extent]:
    """Yield all extents of an object, in order."""
    at = 0
    while at < row.size:
        found = objects.extents(row, at, row.size, most=_LOOK)
        yield from found
        at = found[-1].offset + found[-1].length


def own_packs(index: Index) -> int | None:
    """Return how many packs of the map, from the first on, came with the snapshot; None if that cannot be told.

    A push names its own packs before those that it refers to, and notes in the record how many bytes its own have.
    """
    left = index.snapshot.record.economics.unique
    if left is None:
        return None
    for number in range(index.objects.pack_count):
        if left == 0:
            return number
        left -= index.objects.pack(number).size
        if left < 0:
            return None
    return index.objects.pack_count if left == 0 else None


def memory_of(index: Index, row: ObjectRow) -> Memory:
    """Say of a memory file where its bytes are."""
    objects, own = index.objects, own_packs(index)
    zero = mine = 0
    for _, length, frame, _ in extents(objects, row):
        if frame == HOLE:
            zero += length
        elif own is not None and objects.frame(frame).pack < own:
            mine += length
    if own is None:
        return Memory(row.size, zero, None, None)
    return Memory(row.size, zero, mine, row.size - zero - mine)
