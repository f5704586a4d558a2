"""Sparse members in all of GNU's spellings, from raw headers: what :mod:`tests.corpus.rawtar` has no member for.

``segments`` are (offset, data) pairs; what the map says can be made to differ from them.
"""

from collections.abc import Sequence
from typing import Final

from tests.corpus.rawtar import base256, header, octal, pad, pax, pax_record

GNU: Final = b"ustar  \0"
Segments = Sequence[tuple[int, bytes]]
Map = Sequence[tuple[int, int]]


def map_of(segments: Segments) -> list[tuple[int, int]]:
    return [(offset, len(data)) for offset, data in segments]


def stored(segments: Segments) -> bytes:
    return b"".join(data for _, data in segments)


def wide(value: int) -> bytes:
    return octal(value, 12) if 0 <= value < 8**11 else base256(value, 12)


def resum(block: bytes) -> bytes:
    """Return the header with the checksum that fits its other bytes."""
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


def patched(block: bytes, offset: int, data: bytes) -> bytes:
    """Return the header with ``data`` at ``offset``, its checksum made to fit."""
    return resum(block[:offset] + data + block[offset + len(data) :])


def old_sparse(name: bytes, size: int, segments: Segments, says: Map | None = None, *, magic: bytes = GNU) -> bytes:
    """Return a member of type S: four entries in the header, 21 in each header that follows it."""
    entries = [wide(offset) + wide(length) for offset, length in (map_of(segments) if says is None else says)]
    data = stored(segments)
    first = b"".join(entries[:4]).ljust(96, b"\0")
    block = header(name, b"S", size=len(data), magic=magic)
    block = patched(block, 386, first + (b"\1" if entries[4:] else b"\0") + wide(size))
    extensions = [
        b"".join(entries[at : at + 21]).ljust(504, b"\0") + (b"\1" if at + 21 < len(entries) else b"\0") + bytes(7)
        for at in range(4, len(entries), 21)
    ]
    return block + b"".join(extensions) + pad(data)


def pax_sparse_00(name: bytes, size: int, segments: Segments, says: Map | None = None) -> bytes:
    """Return a member whose map is repeated pax records."""
    chosen = map_of(segments) if says is None else says
    body = pax_record(b"GNU.sparse.size", b"%d" % size) + pax_record(b"GNU.sparse.numblocks", b"%d" % len(chosen))
    for offset, length in chosen:
        body += pax_record(b"GNU.sparse.offset", b"%d" % offset) + pax_record(b"GNU.sparse.numbytes", b"%d" % length)
    data = stored(segments)
    return header(b"pax", b"x", size=len(body)) + pad(body) + header(name, size=len(data)) + pad(data)


def pax_sparse_01(name: bytes, size: int, segments: Segments, says: Map | None = None, *, text: bytes | None = None) -> bytes:
    """Return a member whose map is one pax record, and whose name is another."""
    chosen = map_of(segments) if says is None else says
    if text is None:
        text = b",".join(b"%d,%d" % pair for pair in chosen)
    records = {
        b"GNU.sparse.size": b"%d" % size,
        b"GNU.sparse.numblocks": b"%d" % len(chosen),
        b"GNU.sparse.map": text,
        b"GNU.sparse.major": b"0",
        b"GNU.sparse.minor": b"1",
        b"GNU.sparse.name": name,
    }
    data = stored(segments)
    return pax(records) + header(b"GNUSparseFile.0/x", size=len(data)) + pad(data)


def pax_sparse_10(name: bytes, size: int, segments: Segments, says: Map | None = None, *, text: bytes | None = None) -> bytes:
    """Return a member whose map is lines of text before its data."""
    chosen = map_of(segments) if says is None else says
    if text is None:
        text = b"%d\n" % len(chosen) + b"".join(b"%d\n%d\n" % pair for pair in chosen)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    data = pad(text) + stored(segments)
    return pax(records) + header(b"GNUSparseFile.0/x", size=len(data)) + pad(data)


SPARSE_FORMATS: Final = [old_sparse, pax_sparse_00, pax_sparse_01, pax_sparse_10]
