"""What a tar header, its pax records and its name mean as an :class:`~imagefs.convert.entry.Entry`.

Pure functions, called by the reader in the order of this file; each raises ``SourceError`` for what an image cannot have.

What does not live here: fields and their numbers (:mod:`imagefs.convert.tar_header`), and where in the stream an entry was.
"""

import os
from typing import Final

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.pax import Records, decimal, time_ns, xattrs_of
from imagefs.convert.tar_header import GNU_MAGIC, ID_MAX, SIZE_MAX, TARGET_MAX, USTAR_MAGIC, clean_path, number, shown
from imagefs.errors import SourceError

KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIR,
    b"6": Kind.FIFO,
}
"""What each type flag is; anything else has no meaning to a container engine."""

_MAJOR_MAX: Final = 0xFFF
_MINOR_MAX: Final = 0xFFFFF
"""What Linux's 32-bit device numbers hold."""

WHITEOUT: Final = b".wh."
_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"


def apply_records(entry: Entry, records: Records, name: bytes, link: bytes, stored: int) -> tuple[bytes, bytes, int]:
    """Let pax records override the header; return (name, link, stored size). An empty value leaves the header's."""
    if value := records.get(b"path"):
        name = value
    if value := records.get(b"linkpath"):
        link = value
    if value := records.get(b"size"):
        stored = decimal(value, "size")
    if value := records.get(b"uid"):
        entry.uid = decimal(value, "uid")
    if value := records.get(b"gid"):
        entry.gid = decimal(value, "gid")
    if value := records.get(b"mtime"):
        entry.mtime_ns = time_ns(value)
    entry.xattrs = xattrs_of(records)
    return name, link, stored


def check(entry: Entry, name: bytes, stored: int) -> None:
    """Refuse numbers that would have to be truncated: sizes past 63 bits, owners past 32, times past 64 bits of seconds."""
    if not 0 <= stored <= SIZE_MAX:
        raise SourceError(f"{shown(name)} has a size that is not between 0 and 2**63-1: {stored}")
    if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
        raise SourceError(f"{shown(name)} has an owner that is not between 0 and 2**32-2: {entry.uid}:{entry.gid}")
    if not -SIZE_MAX <= entry.mtime_ns // 1_000_000_000 <= SIZE_MAX:
        raise SourceError(f"{shown(name)} has a time beyond 64 bits of seconds")


def complete(entry: Entry, link: bytes, magic: bytes, major: bytes, minor: bytes) -> None:
    """Complete a link or a device."""
    kind = entry.kind
    if kind is Kind.HARDLINK:
        entry.link = clean_path(link)
    elif kind is Kind.SYMLINK:
        if not link or len(link) > TARGET_MAX or b"\0" in link:
            raise SourceError(f"{shown(entry.path)} is a symbolic link whose target is empty, has a NUL, or is over {TARGET_MAX} bytes")
        entry.link = link
    elif kind in (Kind.CHAR, Kind.BLOCK) and magic in (USTAR_MAGIC, GNU_MAGIC):
        numbers = number(major), number(minor)
        if not (0 <= numbers[0] <= _MAJOR_MAX and 0 <= numbers[1] <= _MINOR_MAX):
            raise SourceError(f"{shown(entry.path)} is a device whose number Linux does not hold: {numbers[0]}:{numbers[1]}")
        entry.rdev = os.makedev(*numbers)


def as_whiteout(entry: Entry) -> Entry | None:
    """Turn an entry with ``.wh.`` in its path into what it says about the layers below; None for bookkeeping of AUFS."""
    parent, _, name = entry.path.rpartition(b"/")
    if WHITEOUT in parent:
        for part in parent.split(b"/"):
            if part.startswith(_META):
                return None
            if part.startswith(WHITEOUT):
                raise SourceError(f"{shown(entry.path)} is below a whiteout")
    if name == _OPAQUE:
        return Entry(parent, Kind.OPAQUE)
    if name.startswith(_META):
        return None
    if not name.startswith(WHITEOUT):
        return entry
    hidden = name[len(WHITEOUT) :]
    if hidden in (b"", b".", b".."):
        raise SourceError(f"{shown(entry.path)} is a whiteout that names nothing")
    return Entry(parent + b"/" + hidden if parent else hidden, Kind.WHITEOUT)
