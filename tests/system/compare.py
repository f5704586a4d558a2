"""What a directory tree is, in every field that a file system shows; and how two of them differ.

Knows nothing of ImageFS: it uses ``lstat``, ``readlink``, ``listxattr`` and plain reads, so that a mount, an unpacked directory and a tree
mounted by the kernel are looked at by the same eyes. Paths are ``bytes`` relative to the root, ``b""`` for the root itself. Every path is
reached by descriptors relative to its directory, because a path of 4,096 bytes cannot be named from outside.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

_PIECE: Final = 1 << 20
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One name. ``links`` are all the paths in the tree that share its inode, ``nlink`` what the file system says; not for directories."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int | None
    content: str | None
    target: bytes | None
    rdev: int | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: frozenset[bytes]
    nlink: int | None


Snapshot = dict[bytes, Node]


def snapshot(root: Path | str | bytes, *, content: bool = True, hidden: Collection[bytes] = ()) -> Snapshot:
    """Look at everything below ``root``, and the root itself. ``hidden`` xattrs are left out; ``content`` False reads no file."""
    rows: list[tuple[bytes, os.stat_result, str | None, bytes | None, tuple[tuple[bytes, bytes], ...]]] = []
    groups: dict[tuple[int, int], set[bytes]] = defaultdict(set)
    for path, directory, name in _walk(os.fsencode(root)):
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        regular = stat.S_ISREG(info.st_mode)
        # /proc/self/fd names the directory, so the path given to the xattr calls, which have no dir_fd, stays short.
        there = b"/proc/self/fd/%d/%s" % (directory, name)
        xattrs = tuple(
            sorted(
                (key, os.getxattr(there, key, follow_symlinks=False))
                for key in map(os.fsencode, os.listxattr(there, follow_symlinks=False))
                if key not in hidden
            )
        )
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(info.st_mode) else None
        rows.append((path, info, _digest(name, directory) if regular and content else None, target, xattrs))
        if not stat.S_ISDIR(info.st_mode):
            groups[info.st_dev, info.st_ino].add(path)
    found: Snapshot = {}
    for path, info, digest, target, xattrs in rows:
        folder = stat.S_ISDIR(info.st_mode)
        device = stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)
        found[path] = Node(
            kind=_KINDS[stat.S_IFMT(info.st_mode)],
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
            size=info.st_size if stat.S_ISREG(info.st_mode) or target is not None else None,
            content=digest,
            target=target,
            rdev=info.st_rdev if device else None,
            xattrs=xattrs,
            links=frozenset() if folder else frozenset(groups[info.st_dev, info.st_ino]),
            nlink=None if folder else info.st_nlink,
        )
    return found


def differences(left: Snapshot, right: Snapshot, *, ignore: Collection[str] = (), root: bool = True) -> list[str]:
    """Return a line for each difference; ``ignore`` names fields, ``root`` False leaves the root directory itself out."""
    names = [field.name for field in fields(Node) if field.name not in ignore]
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if path == b"" and not root:
            continue
        one, other = left.get(path), right.get(path)
        if one is None or other is None:
            lines.append(f"{path!r}: only on the {'right' if one is None else 'left'} side")
            continue
        lines += [
            f"{path!r}: {name}: {getattr(one, name)!r} != {getattr(other, name)!r}"
            for name in names
            if getattr(one, name) != getattr(other, name)
        ]
    return lines


def _walk(root: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (path, descriptor of the directory, name in it) of everything, the root first as ``.``."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield b"", top, b"."
        yield from _below(top, b"")
    finally:
        os.close(top)


def _below(directory: int, path: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    # Iterating over a descriptor gives str names; surrogateescape keeps every byte of them.
    with os.scandir(directory) as listing:
        names = sorted((os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in listing)
    for name, folder in names:
        child = path + b"/" + name if path else name
        yield child, directory, name
        if folder:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                yield from _below(inner, child)
            finally:
                os.close(inner)


def _digest(name: bytes, directory: int) -> str:
    digest = hashlib.sha256()
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        while piece := os.read(handle, _PIECE):
            digest.update(piece)
    finally:
        os.close(handle)
    return digest.hexdigest()
