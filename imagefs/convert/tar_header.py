"""The 512-byte tar header and what its fields mean: numbers, checksum, names.

Formats: v7, POSIX ustar, old GNU, star. Pure functions over ``bytes``; every one raises ``SourceError`` for a field that has no one
meaning, without saying where it was: the reader knows that. The field layout is that of POSIX.1-1988 (ustar); for the rest, that of GNU
tar's ``tar.h``.

What does not live here: pax records (:mod:`imagefs.convert.pax`), sparse maps (:mod:`imagefs.convert.sparse`), reading a stream.
"""

from struct import Struct
from typing import Final
from zlib import adler32

from imagefs.errors import SourceError

BLOCK: Final = 512
"""Bytes in a block: headers are one, data is padded to a multiple."""

ZERO_BLOCK: Final = bytes(BLOCK)

HEADER: Final = Struct("<100s8s8s8s12s12s8sc100s6s2x64x8s8s155s8x4s")
"""name, mode, uid, gid, size, mtime, checksum, typeflag, linkname, magic, devmajor, devminor, prefix, star trailer."""

USTAR_MAGIC: Final = b"ustar\0"
GNU_MAGIC: Final = b"ustar "
STAR_TRAILER: Final = b"tar\0"

PATH_MAX: Final = 4096
"""Longest path, in bytes, after it was normalised."""

NAME_MAX: Final = 255
"""Longest part of a path, in bytes."""

TARGET_MAX: Final = 4095
"""Longest target of a symbolic link, in bytes: what Linux can hold."""

SIZE_MAX: Final = (1 << 63) - 1
ID_MAX: Final = (1 << 32) - 2
"""2**32 - 1 is ``(uid_t)-1``, which every chown call takes for "leave it"."""

_SIGN: Final = 0x80


def number(field: bytes) -> int:
    """Return the value of a numeric field: octal padded with spaces and NULs, or base-256 (GNU). An empty field is 0."""
    text = field.strip(b" \0")
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            pass
    elif not text:
        return 0
    if field[0] & _SIGN:
        # The first bit marks the format, the other bits are a two's complement number.
        span = 1 << (8 * len(field) - 1)
        value = int.from_bytes(field, "big") - span
        return value - span if field[0] & 0x40 else value
    raise SourceError(f"the header has a field that is no number: {field!r}")


def checksum_fits(block: bytes, stored: bytes) -> bool:
    """Say whether the checksum field ``stored`` is that of the header ``block``, summed as unsigned or (old tars) as signed bytes."""
    try:
        expected = number(stored)
    except SourceError:
        return False
    # adler32's low half is 1 plus the sum modulo 65521, which 256 bytes never reach: an exact sum at the speed of C.
    around = (adler32(block[412:], adler32(block[:148])) & 0xFFFF) + (adler32(block[156:412]) & 0xFFFF)
    if around - 2 + 256 == expected:
        return True
    return sum(byte - 256 if byte & _SIGN else byte for byte in block[:148] + block[156:]) + 256 == expected


def text(field: bytes) -> bytes:
    """Return a NUL-terminated text field."""
    return field.partition(b"\0")[0]


def prefix_of(magic: bytes, prefix: bytes, trailer: bytes) -> bytes:
    """Return the directory part that a header keeps apart from the name, by the header's format; ``b""`` if there is none."""
    if magic == USTAR_MAGIC:
        return text(prefix[:131]) if trailer == STAR_TRAILER else text(prefix)
    if magic == GNU_MAGIC and prefix[0]:
        # Old GNU keeps times here. But writers built with Go before 1.8 put a ustar prefix under the GNU magic, and
        # images of that age are still around; the times are then no numbers.
        try:
            number(prefix[:12])
            number(prefix[12:24])
        except SourceError:
            found = text(prefix)
            return found if found.isascii() else b""
    return b""


def clean_path(path: bytes) -> bytes:
    """Return ``path`` relative to the root, without empty and ``.`` parts; ``b""`` is the root.

    A leading ``/`` means the image's root. A ``..`` part is refused: what it names depends on whether one resolves it before or after
    symbolic links, and tools differ. So are NULs, parts over ``NAME_MAX`` and paths over ``PATH_MAX`` bytes.
    """
    if path.startswith(b"./"):
        path = path[2:]
    path = path.rstrip(b"/")
    if path.startswith((b".", b"/")) or b"//" in path or b"/." in path:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise SourceError(f"{shown(path)} has a '..' part", hint="an image must not name anything outside its root")
        path = b"/".join(parts)
    if len(path) > NAME_MAX:
        if len(path) > PATH_MAX:
            raise SourceError(f"{shown(path)} is longer than {PATH_MAX} bytes")
        if max(map(len, path.split(b"/"))) > NAME_MAX:
            raise SourceError(f"{shown(path)} has a part longer than {NAME_MAX} bytes")
    if b"\0" in path:
        raise SourceError(f"{shown(path)} has a NUL in it")
    return path


def shown(path: bytes) -> str:
    """Return ``path`` for a message: quoted, printable, and of bounded length."""
    cut = path if len(path) <= 120 else path[:80] + b"..." + path[-30:]
    return repr(cut)[1:]
