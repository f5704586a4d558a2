"""Tar archives from raw headers: every field can hold what no tar program would write.

A member is the ``bytes`` of its header blocks and its padded data; a layer is :func:`archive` of members. Nothing here uses ``tarfile``,
so that the tests do not share its idea of the format.
"""

from collections.abc import Mapping
from typing import Final

BLOCK: Final = 512
FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
MTIME: Final = 1_700_000_000


def pad(data: bytes) -> bytes:
    """Return ``data`` filled with zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def octal(value: int, width: int) -> bytes:
    """Return a number field as POSIX has it: octal digits and a NUL."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """Return a number field as GNU has it for what octal cannot hold, negative numbers included."""
    raw = bytearray((value & ((1 << (8 * width)) - 1)).to_bytes(width, "big"))
    raw[0] |= 0x80
    return bytes(raw)


def header(  # one argument a field of the header
    name: bytes,
    kind: bytes = FILE,
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = MTIME,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """Return one header block. A field given as bytes is taken as it is; numbers too large for octal become base-256."""

    def number(value: int | bytes, width: int) -> bytes:
        if isinstance(value, bytes):
            return value.ljust(width, b"\0")
        return octal(value, width) if 0 <= value < 8 ** (width - 1) else base256(value, width)

    fields = [
        name.ljust(100, b"\0")[:100],
        number(mode, 8),
        number(uid, 8),
        number(gid, 8),
        number(size, 12),
        number(mtime, 12),
        b" " * 8,
        kind,
        link.ljust(100, b"\0")[:100],
        magic,
        bytes(32),
        bytes(32),
        number(major, 8),
        number(minor, 8),
        prefix.ljust(155, b"\0")[:155],
        bytes(12),
    ]
    block = b"".join(fields)
    if len(block) != BLOCK:
        raise AssertionError(len(block))
    total = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return block[:148] + total + block[156:]


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    """Return an extended header (``kind`` x, or g for the rest of the archive) with these records."""
    body = b"".join(pax_record(key, value) for key, value in records.items())
    return header(b"pax", kind, size=len(body)) + pad(body)


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one ``LENGTH KEY=VALUE`` line; the length counts itself."""
    length = rest = len(key) + len(value) + 3
    while length != rest + len(b"%d" % length):
        length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, key, value)


def member(name: bytes, kind: bytes = FILE, data: bytes = b"", records: Mapping[bytes, bytes] | None = None, **fields: object) -> bytes:
    """Return a member: an extended header where it needs one (long names, ``records``), its header, its data."""
    extra = dict(records or {})
    link = fields.get("link", b"")
    if len(name) > 100:  # the width of the field
        extra.setdefault(b"path", name)
    if isinstance(link, bytes) and len(link) > 100:  # the width of the field
        extra.setdefault(b"linkpath", link)
    fields.setdefault("size", len(data))
    return (pax(extra) if extra else b"") + header(name, kind, **fields) + pad(data)  # type: ignore[arg-type]


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """Return a regular file."""
    return member(name, FILE, data, **fields)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    """Return a directory."""
    return member(name, DIR, mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    """Return a symbolic link."""
    return member(name, SYMLINK, link=target, mode=0o777, **fields)  # type: ignore[arg-type]


def hardlink(name: bytes, target: bytes, **fields: object) -> bytes:
    """Return a hard link to the member of that path."""
    return member(name, LINK, link=target, **fields)  # type: ignore[arg-type]


def whiteout(name: bytes) -> bytes:
    """Return the OCI marker that hides ``name`` of the layers below."""
    parent, _, base = name.rpartition(b"/")
    return file((parent + b"/" if parent else b"") + b".wh." + base)


def opaque(name: bytes) -> bytes:
    """Return the OCI marker that hides what directory ``name`` has in the layers below."""
    return file((name + b"/" if name else b"") + b".wh..wh..opq")


def gnu_long(name: bytes, kind: bytes = b"L") -> bytes:
    """Return the GNU member that gives the next one its long name (L) or link target (K)."""
    return header(b"././@LongLink", kind, size=len(name) + 1, magic=b"ustar  \0") + pad(name + b"\0")


def archive(*members: bytes, end: bytes = bytes(2 * BLOCK)) -> bytes:
    """Return a whole archive."""
    return b"".join(members) + end
