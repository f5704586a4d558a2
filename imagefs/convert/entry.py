"""One entry of a layer: what the tar reader and the directory walker yield and the flattener applies."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an entry does to the tree."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"
    WHITEOUT = "whiteout"
    """``path`` (already without ``.wh.``) is hidden in the layers below."""
    OPAQUE = "opaque"
    """The children of directory ``path`` that the layers below have are hidden."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a regular file after it was read: ``object`` is its raw digest, or ``inline`` its at most ``INLINE_MAX`` bytes."""

    size: int
    object: bytes | None
    inline: bytes | None


@dataclass(slots=True, eq=False)
class Entry:
    """One entry of one layer, in the order in which the layer has it.

    ``path`` is relative to the root, with no empty, ``.`` or ``..`` parts (the reader refused those), ``b""`` for the root itself.
    ``mode`` holds permission bits only (``0o7777``). ``link`` is a symlink's target as written, or a hard link's target as
    a path like ``path``. ``size`` is the file's logical size in bytes. ``sparse`` lists the data segments ``(offset, length)`` in
    order, without overlap, where the file has holes; None if it is all data. ``content`` is set by whoever read the data.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    link: bytes = b""
    xattrs: dict[bytes, bytes] | None = None
    sparse: list[tuple[int, int]] | None = None
    content: Content | None = None
