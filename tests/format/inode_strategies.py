"""hypothesis strategies of inode trees, and a tree's description by path to compare others with.

The trees are what conversion may build: every type of file, hard links within and across directories, names and targets of any bytes,
attributes of every namespace that Linux allows on the type, numbers at the ends of their ranges.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

from imagefs.format.tree import INLINE_MAX, Inode

_U32: Final = (1 << 32) - 1
_NAME_BYTES: Final = bytes(sorted({*range(256)} - {0, ord("/")}))


@dataclass(frozen=True, slots=True)
class Row:
    """One path of a tree, as every file system would show it. ``links`` are all the paths of its inode."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    rdev: int
    size: int
    target: bytes
    inline: bytes | None
    object: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: frozenset[bytes]


class DrawnInode(Inode):
    """An inode that hypothesis can print: the whole tree in a report would be longer than anybody reads, and hypothesis warns of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        names = sorted(self.children or {})
        return f"<{self.mode:#o} size={self.size} xattrs={sorted(self.xattrs or {})} {len(names)} children {names[:3]}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def walk(root: Inode) -> Iterator[tuple[bytes, Inode]]:
    """Yield every path with its inode, parents first, ``b""`` for the root."""
    pending = [(b"", root)]
    while pending:
        path, inode = pending.pop()
        yield path, inode
        pending += [(path + b"/" + name, child) for name, child in (inode.children or {}).items()]


def describe(root: Inode) -> dict[bytes, Row]:
    """Return what a reader must show of the tree, by path. A directory's size is left 0: it is the format's own affair."""
    paths: dict[Inode, set[bytes]] = {}
    for path, inode in walk(root):
        paths.setdefault(inode, set()).add(path)
    return {path: _row(inode, paths[inode]) for path, inode in walk(root)}


def _row(inode: Inode, paths: set[bytes]) -> Row:
    kind = stat.S_IFMT(inode.mode)
    size, nlink = 0, len(paths)
    if kind == stat.S_IFDIR:
        nlink = 2 + sum(stat.S_ISDIR(child.mode) for child in (inode.children or {}).values())
    elif kind == stat.S_IFLNK:
        size = len(inode.target)
    elif kind == stat.S_IFREG:
        size = inode.size if inode.object is not None else len(inode.inline or b"")
    return Row(
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime_ns=inode.mtime_ns,
        nlink=nlink,
        rdev=inode.rdev,
        size=size,
        target=inode.target,
        inline=(inode.inline or b"") if kind == stat.S_IFREG and inode.object is None else None,
        object=inode.object,
        xattrs=tuple(sorted((inode.xattrs or {}).items())),
        links=frozenset(paths),
    )


# -- parts --------------------------------------------------------------------------------------------------------------------------------
# Each is made once: making a strategy takes longer than drawing from it.


@cache
def names() -> st.SearchStrategy[bytes]:
    """File names: plain ones, which collide and sort around ``.`` and ``..``, any bytes, and the longest."""
    odd = st.lists(st.sampled_from(_NAME_BYTES), min_size=1, max_size=12).map(bytes)
    longest = st.builds(lambda start, byte: start + bytes([byte]) * (255 - len(start)), odd, st.sampled_from(_NAME_BYTES))
    plain = st.text("ab-.", min_size=1, max_size=4).map(str.encode)
    return st.one_of(plain, odd, longest).filter(lambda name: name not in {b".", b".."})


@cache
def acls() -> st.SearchStrategy[bytes]:
    """POSIX ACLs as Linux stores them: owner, one user, group, mask, others."""
    permissions = st.integers(0, 7)
    return st.builds(
        lambda own, user, group, mask, other, uid: struct.pack(
            "<I" + "HHI" * 5, 2, 1, own, _U32, 2, user, uid, 4, group, _U32, 16, mask, _U32, 32, other, _U32
        ),
        permissions, permissions, permissions, permissions, permissions, st.integers(0, 1 << 20),
    )  # fmt: skip


@cache
def xattrs(kind: int) -> st.SearchStrategy[dict[bytes, bytes] | None]:
    """Attributes that Linux allows on a file of this type, overlayfs's own among them, some of which fill a block."""
    rest = st.lists(st.sampled_from(_NAME_BYTES), min_size=1, max_size=8).map(bytes)
    longest = st.just(b"n" * (255 - len("security.")))
    prefixes = [b"trusted.", b"security.x", b"trusted.overlay.", b"trusted.overlay.overlay."]
    if kind in {stat.S_IFREG, stat.S_IFDIR}:
        prefixes.append(b"user.")
    name = st.one_of(st.builds(bytes.__add__, st.sampled_from(prefixes), rest), st.builds(bytes.__add__, st.just(b"trusted."), longest))
    value = st.one_of(st.binary(max_size=20), st.sampled_from([b"", b"v" * 4000, b"w" * 4096, b"x" * 9000]))
    found = st.dictionaries(name, value, max_size=4)
    if kind != stat.S_IFLNK:
        access: st.SearchStrategy[dict[bytes, bytes]] = st.one_of(st.just({}), acls().map(lambda acl: {b"system.posix_acl_access": acl}))
        found = st.builds(dict.__or__, found, access)
    if kind == stat.S_IFDIR:
        default: st.SearchStrategy[dict[bytes, bytes]] = st.one_of(st.just({}), acls().map(lambda acl: {b"system.posix_acl_default": acl}))
        found = st.builds(dict.__or__, found, default)
    return st.one_of(st.none(), st.none(), found)


_IDS: Final = st.one_of(st.just(0), st.integers(0, _U32 - 1))  # the last is "no id" to Linux
_TIMES: Final = st.one_of(
    st.integers(-(10**18), 4 * 10**18),
    st.sampled_from([0, -1, 1, -(10**9), 999_999_999, (1 << 31) * 10**9, -(1 << 31) * 10**9 - 1]),
)
_SIZES: Final = st.one_of(
    st.integers(INLINE_MAX + 1, 1 << 20),
    st.sampled_from([1, 4095, 4096, 4097, (1 << 32) + 1, (1 << 43) - 1, 1 << 43, (1 << 43) + 1, (1 << 46) + 4096]),
)


@cache
def inodes(kind: int) -> st.SearchStrategy[Inode]:
    """One inode of type ``kind`` (an ``S_IFMT`` value), a directory without children."""
    fields: dict[str, st.SearchStrategy[object]] = {
        "mode": st.integers(0, 0o7777).map(lambda bits: kind | bits) if kind != stat.S_IFLNK else st.just(kind | 0o777),
        "uid": _IDS,
        "gid": _IDS,
        "mtime_ns": _TIMES,
        "xattrs": xattrs(kind),
    }
    if kind == stat.S_IFREG:
        inline = st.builds(DrawnInode, inline=st.binary(max_size=INLINE_MAX), **fields)
        return st.one_of(inline, st.builds(DrawnInode, object=st.binary(min_size=32, max_size=32), size=_SIZES, **fields))
    if kind == stat.S_IFLNK:
        target = st.lists(st.sampled_from(range(1, 256)), min_size=1, max_size=40).map(bytes)
        fields["target"] = st.one_of(target, st.sampled_from([b"t" * length for length in (4000, 4031, 4032, 4033, 4095)]))
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        major, minor = st.integers(0, (1 << 12) - 1), st.integers(0, (1 << 20) - 1)
        fields["rdev"] = st.builds(lambda major, minor: (minor & 0xFF) | major << 8 | (minor & 0xFFF00) << 12, major, minor)
    elif kind == stat.S_IFDIR:
        fields["children"] = st.builds(dict)
    return st.builds(DrawnInode, **fields)


# -- trees --------------------------------------------------------------------------------------------------------------------------------


@st.composite
def inode_trees(draw: st.DrawFn, *, max_directories: int = 6, max_files: int = 12) -> Inode:
    """A root directory with everything below it. A file may have up to three names, anywhere; a directory may be crowded."""
    directories = [draw(inodes(stat.S_IFDIR))]
    for _ in range(draw(st.integers(0, max_directories))):
        child = draw(inodes(stat.S_IFDIR))
        if _add(draw, directories, child):
            directories.append(child)
    kinds = st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
    for _ in range(draw(st.integers(0, max_files))):
        child = draw(kinds.flatmap(inodes))
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            _add(draw, directories, child)
    _crowd(draw, draw(st.sampled_from(directories)))
    return replace(directories[0])  # hypothesis prints what it built itself by its parts; it did not build this one


def _add(draw: st.DrawFn, directories: list[Inode], child: Inode) -> bool:
    parent, name = draw(st.sampled_from(directories)), draw(names())
    assert parent.children is not None
    return parent.children.setdefault(name, child) is child


def _crowd(draw: st.DrawFn, directory: Inode) -> None:
    """Give a directory so many names of one length that its dirents take several blocks, or end near a block's end."""
    count, length = draw(st.sampled_from([(0, 1), (0, 1), (15, 251), (16, 244), (200, 8), (201, 8), (900, 20)]))
    first = draw(st.sampled_from([b"-", b"0"]))  # which come before and after "." and ".."
    assert directory.children is not None
    for number in range(count):
        directory.children.setdefault(first + b"%0*d" % (length - 1, number), DrawnInode(0o100644, inline=b""))
