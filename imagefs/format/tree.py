"""The inode model that a tree is written from: what conversion builds and the EROFS writer takes.

Invariants: a hard-linked file is one ``Inode`` object reached under several names; names are non-empty bytes of
at most 255 without ``/`` and NUL, never ``.`` or ``..``; only directories have ``children``. Nothing here counts
links or assigns numbers: the writer does both.
"""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Inode:
    """One file of any type, as it stands in the flattened image.

    ``mode`` holds the type and permission bits (``S_IFMT | 0o7777``); ``mtime_ns`` is signed nanoseconds since the
    epoch; ``rdev`` is ``os.makedev(major, minor)`` of device files; ``xattrs`` maps full names (``user.x``) as the image has
    them (not yet escaped) to values. A regular file has either ``inline`` (at most ``INLINE_MAX`` bytes, ``b""`` for an empty file)
    or ``object`` (the raw digest of its bytes) together with ``size`` in bytes. ``target`` is a symbolic link's.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    size: int = 0
    object: bytes | None = None
    inline: bytes | None = None
    target: bytes = b""
    xattrs: dict[bytes, bytes] | None = None
    children: "dict[bytes, Inode] | None" = None


INLINE_MAX = 64
"""Largest content, in bytes, that is kept in the tree instead of an object."""
