r"""Pax extended headers: records, exact decimal times, extended attributes.

A pax header is a run of ``LENGTH KEY=VALUE\n`` records (POSIX.1-2001); values may hold any byte. Pure functions; each raises
``SourceError`` for what has no one meaning. Keys that nobody here knows are ignored, as POSIX asks.

``SCHILY.acl.*`` (ACLs as text) are ignored like every container engine does: images carry ACLs as the xattrs
``system.posix_acl_*``, and a text ACL names users of the machine that wrote it.
"""

import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from imagefs.convert.tar_header import SIZE_MAX, shown
from imagefs.errors import SourceError

PAX_MAX: Final = 8 * 1024 * 1024
"""Largest pax header, in bytes, that is read: over a hundred of the largest attributes."""

XATTR_VALUE_MAX: Final = 65536
XATTR_NAME_MAX: Final = 255
"""What Linux can hold (``XATTR_SIZE_MAX``, ``XATTR_NAME_MAX``)."""

SCHILY: Final = b"SCHILY.xattr."
LIBARCHIVE: Final = b"LIBARCHIVE.xattr."

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
_ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})

_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
SPARSE_MAP: Final = b"GNU.sparse.map"

_PER_FILE: Final = (b"path", b"linkpath", b"size")
_TIME: Final = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_LENGTH_DIGITS: Final = 10
_NEWLINE: Final = 0x0A

Records = dict[bytes, bytes]


def parse_records(data: bytes) -> Records:
    """Return the records of a pax header; the last of a repeated key wins.

    The offset and size records of sparse format 0.0, which repeat by design, come back joined as a 0.1 map.
    """
    records: Records = {}
    pairs: list[bytes] = []
    position = 0
    end = len(data)
    while position < end:
        space = data.find(b" ", position, position + _LENGTH_DIGITS + 1)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise SourceError("a pax record has no length")
        stop = position + int(digits)
        # The least record has a key of one byte. Checked first: a bound below 0 would count from the end, and a length of 0 never advance.
        if not space + 3 < stop <= end or data[stop - 1] != _NEWLINE:
            raise SourceError("a pax record is not of the length that it says")
        equals = data.find(b"=", space + 1, stop - 1)
        if equals <= space + 1:
            raise SourceError("a pax record has no key")
        key = data[space + 1 : equals]
        value = data[equals + 1 : stop - 1]
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(pairs) & 1] or b"," in value:
                raise SourceError("the sparse map in the pax header is out of order")
            pairs.append(value)
        else:
            records[key] = value
        position = stop
    if pairs:
        records[SPARSE_MAP] = b",".join(pairs)
    return records


def parse_global(data: bytes) -> Records:
    """Return the records of a global pax header: defaults for all that follows, and so nothing that can only be one file's."""
    records = parse_records(data)
    for key in records:
        if key in _PER_FILE or key.startswith(b"GNU.sparse."):
            raise SourceError(f"a global pax header sets {shown(key)}, which belongs to one file")
    return records


def decimal(value: bytes, what: str) -> int:
    """Return a non-negative decimal integer of at most 63 bits."""
    if not value.isdigit() or len(value) > 19 or (result := int(value)) > SIZE_MAX:
        raise SourceError(f"the pax header has a {what} that is not between 0 and 2**63-1: {shown(value)}")
    return result


def time_ns(value: bytes) -> int:
    """Return a decimal time in seconds as nanoseconds, exactly; digits after the ninth are cut off, towards zero."""
    match = _TIME.fullmatch(value)
    if match is None or int(match[2]) > SIZE_MAX:
        raise SourceError(f"the pax header has an mtime that is no time: {shown(value)}")
    fraction = match[3] or b""
    result = int(match[2]) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -result if match[1] else result


def xattrs_of(records: Records) -> dict[bytes, bytes] | None:
    """Return the extended attributes in ``records``, None if there are none.

    Of an attribute that is there in both spellings, the SCHILY one counts: it has the bytes as they are. Names outside the namespaces
    that Linux keeps in a file system (macOS writes its own) are left out, as there is no way to store them.
    """
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(SCHILY):
            _add(found, key[len(SCHILY) :], value)
        elif key.startswith(LIBARCHIVE):
            name = unquote_to_bytes(key[len(LIBARCHIVE) :])
            if SCHILY + name not in records:
                _add(found, name, _unbase64(value))
    return found or None


def _add(found: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    if name not in _ACLS and not name.startswith(_NAMESPACES):
        return
    if name in _NAMESPACES or b"\0" in name or len(name) > XATTR_NAME_MAX:
        raise SourceError(f"the extended attribute name {shown(name)} is not one that Linux can hold")
    if len(value) > XATTR_VALUE_MAX:
        raise SourceError(f"the extended attribute {shown(name)} has {len(value)} bytes; Linux holds {XATTR_VALUE_MAX}")
    found[name] = value


def _unbase64(value: bytes) -> bytes:
    try:
        # libarchive leaves out the padding.
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error as error:
        raise SourceError("the pax header has an extended attribute that is not base64") from error
