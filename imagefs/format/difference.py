"""How two trees differ: names that only one has, and what is different about those that both have. Pure.

Invariants:

- both are walked side by side, in the order of paths, and nothing is kept of what was passed but the directories' nids (against trees that
  lead back to where one came from) and one path for each file of several names;
- content is compared by digest: nothing of it is read, and one that is inlined here and an object there is the same;
- a tree whose directories are not in order is refused as damaged: side by side, order is what tells a name that is missing;
- a damaged tree gives ``IntegrityError`` where it is met, after what came before.

A directory's size and link count follow from what is in it and are not compared. Of a file of several names, the names say which they are
by the first of them; so where a group was split, the names that left it are told, and where only the count of names differs, all of them.
"""

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from imagefs.digest import digest_of
from imagefs.errors import IntegrityError
from imagefs.format.erofs_reader import InodeStat, Tree

ADDED: Final = "added"
REMOVED: Final = "removed"
CHANGED: Final = "changed"

Pair = tuple[object, object]
"""A field's value in the first tree, and in the second."""

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


_DEVICES: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})


class Change(NamedTuple):
    """One path that differs, from the root on, which is ``b"/"``; ``what`` is ``ADDED``, ``REMOVED`` or ``CHANGED``.

    ``fields`` says of a changed one what was and what is: ``type``, ``mode`` (permission bits), ``owner`` (uid and gid), ``mtime`` (in
    nanoseconds since the epoch), ``size``, ``content`` (hex digests), ``target``, ``device`` (major and minor), ``links`` (how many names
    the file has), and ``xattrs``: the names of the attributes that only the first has or that differ, and of those that only the second has
    or that differ.
    """

    path: bytes
    what: str
    fields: dict[str, Pair]


class _Side:
    """One of the two trees, and what has to be remembered of it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._directories: set[int] = set()
        self._firsts: dict[int, bytes] = {}

    def names(self, nid: int) -> Iterator[tuple[bytes, int]]:
        """Yield the names of a directory with their nids, in order."""
        if nid in self._directories:
            raise IntegrityError(f"the tree is damaged at inode {nid}: a directory that is met twice")
        self._directories.add(nid)
        before = b""
        for name, child, _, _ in self.tree.readdir(nid):
            if name <= before:
                raise IntegrityError(f"the tree is damaged at inode {nid}: a directory whose names are not in order")
            before = name
            if name not in {b".", b".."}:
                yield name, child

    def first(self, found: InodeStat, path: bytes) -> bytes:
        """Return the first name that the walk met of a file: ``path``, if this is it."""
        return self._firsts.setdefault(found.nid, path) if found.nlink > 1 else path

    def content(self, nid: int) -> bytes:
        return self.tree.object_of(nid) or digest_of(self.tree.inline(nid))

    def xattrs(self, nid: int) -> dict[bytes, bytes | None]:
        return {name: self.tree.xattr(nid, name) for name in self.tree.xattr_names(nid)}


_Entry = tuple[bytes, int | None, int | None]
"""A name and its nids in both trees, None where it is not there."""


def differences(first: Tree, second: Tree) -> Iterator[Change]:
    """Yield each path that differs. ``IntegrityError`` or ``UnsupportedError`` for a tree that cannot be read to its end."""
    left, right = _Side(first), _Side(second)
    change, is_left, is_right = _compare(left, right, b"/", first.root, second.root)
    if change is not None:
        yield change
    open_directories = [(b"/", _merged(left, right, is_left, is_right))]
    while open_directories:
        prefix, entries = open_directories[-1]
        entry = next(entries, None)
        if entry is None:
            open_directories.pop()
            continue
        name, one, other = entry
        # Nearly all files of two images that are compared are the same, and told so at once.
        if one is not None and other is not None and (known := first.bytes_of(one)) is not None and known == second.bytes_of(other):
            continue
        path = prefix + name
        change, is_left, is_right = _compare(left, right, path, one, other)
        if change is not None:
            yield change
        if is_left is not None or is_right is not None:
            open_directories.append((path + b"/", _merged(left, right, is_left, is_right)))


def _merged(left: _Side, right: _Side, one: int | None, other: int | None) -> Iterator[_Entry]:
    """Yield the names of two directories, either of which may not be there."""
    first = left.names(one) if one is not None else iter(())
    second = right.names(other) if other is not None else iter(())
    here, there = next(first, None), next(second, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0] < there[0]):
            assert here is not None
            yield here[0], here[1], None
            here = next(first, None)
        elif here is None or there[0] < here[0]:
            yield there[0], None, there[1]
            there = next(second, None)
        else:
            yield here[0], here[1], there[1]
            here, there = next(first, None), next(second, None)


def _compare(left: _Side, right: _Side, path: bytes, one: int | None, other: int | None) -> tuple[Change | None, int | None, int | None]:
    """Return how one path differs, and the nid on either side if it is a directory there."""
    here = left.tree.stat(one) if one is not None else None
    there = right.tree.stat(other) if other is not None else None
    # Also of what only one tree has: the other names of the same file are compared with it.
    first = left.first(here, path) if here is not None else path
    second = right.first(there, path) if there is not None else path
    change = None
    if here is None or there is None:
        change = Change(path, REMOVED if there is None else ADDED, {})
    else:
        fields = _fields(left, right, here, there)
        if first != second:
            fields["links"] = here.nlink, there.nlink
        if fields:
            change = Change(path, CHANGED, fields)
    return change, _directory(here), _directory(there)


def _directory(found: InodeStat | None) -> int | None:
    return found.nid if found is not None and stat.S_ISDIR(found.mode) else None


def _fields(left: _Side, right: _Side, here: InodeStat, there: InodeStat) -> dict[str, Pair]:
    """Return what differs between two inodes, but for which other names they have."""
    fields: dict[str, Pair] = {}
    kind = stat.S_IFMT(here.mode)
    if here.mode != there.mode:
        if kind != stat.S_IFMT(there.mode):
            fields["type"] = _KINDS[kind], _KINDS[stat.S_IFMT(there.mode)]
            kind = 0
        if stat.S_IMODE(here.mode) != stat.S_IMODE(there.mode):
            fields["mode"] = stat.S_IMODE(here.mode), stat.S_IMODE(there.mode)
    if here[3:5] != there[3:5]:
        fields["owner"] = (here.uid, here.gid), (there.uid, there.gid)
    if here.mtime_ns != there.mtime_ns:
        fields["mtime"] = here.mtime_ns, there.mtime_ns
    if kind == stat.S_IFREG:
        if here.size != there.size:
            fields["size"] = here.size, there.size
        if (one := left.content(here.nid)) != (other := right.content(there.nid)):
            fields["content"] = one.hex(), other.hex()
    elif kind == stat.S_IFLNK:
        if (target := left.tree.readlink(here.nid)) != (new := right.tree.readlink(there.nid)):
            fields["target"] = target, new
    elif kind in _DEVICES and here.rdev != there.rdev:
        fields["device"] = _device(here.rdev), _device(there.rdev)
    if kind and kind != stat.S_IFDIR and here.nlink != there.nlink:
        fields["links"] = here.nlink, there.nlink
    before, after = left.xattrs(here.nid), right.xattrs(there.nid)
    if before != after:
        fields["xattrs"] = (
            sorted(name for name, value in before.items() if after.get(name) != value),
            sorted(name for name, value in after.items() if before.get(name) != value),
        )
    return fields


def _device(rdev: int) -> tuple[int, int]:
    return os.major(rdev), os.minor(rdev)
