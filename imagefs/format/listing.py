"""Listings: the entries of a layer of a source, in its order, as reading the layer gave them. Specified in ``docs/format/store.md``.

Invariants:

- a listing is a pure function of the layer: which image it was read for, and what of it another layer hides, is not in it;
- a row that is read has the types, the bounds and the combination of fields that a layer's entry can have; anything else is
  ``IntegrityError``, another version ``UnsupportedError``, and never an exception of another kind;
- rows are read a run at a time: memory is bounded by one run, whatever the listing's size.

What does not live here: what paths mean, and whether they are clean (``imagefs.convert.listed``); who trusts which listing
(``imagefs.store.listings``).
"""

import mmap
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Final

import msgspec

from imagefs.digest import DIGEST_SIZE, Buffer
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.tree import INLINE_MAX

LISTING_MAGIC: Final = b"IMFSLIST"
LISTING_VERSION: Final = 1
"""Also raised when a layer's entries come to mean something else: then what an older version read is not what this one would."""

MAX_LISTING: Final = 256 * 1024 * 1024
"""Bytes of a listing, at most: about two million entries. A larger layer has none, and is read each time."""

KINDS: Final = ("file", "dir", "symlink", "hardlink", "char", "block", "fifo", "whiteout", "opaque")
"""What an entry may be; a row has the index."""

FILE: Final = 0
_MARKERS: Final = 7
"""From this kind on, an entry has a path and nothing else."""

_HEADER: Final = struct.Struct("<8sII")
_RUN: Final = struct.Struct("<I")
_RUN_ROWS: Final = 1024
_INT63: Final = 2**63 - 1

_Bytes = Annotated[bytes, msgspec.Meta(max_length=65536)]


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One entry. ``kind`` is an index into ``KINDS``; the time is ``seconds`` and ``nanoseconds`` since the epoch.

    ``content`` is a file's bytes if they are at most ``INLINE_MAX``, else the raw digest of its object.
    """

    path: _Bytes
    kind: Annotated[int, msgspec.Meta(ge=0, lt=len(KINDS))]
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0
    uid: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    gid: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    seconds: Annotated[int, msgspec.Meta(ge=-_INT63 - 1, le=_INT63)] = 0
    nanoseconds: Annotated[int, msgspec.Meta(ge=0, lt=1_000_000_000)] = 0
    size: Annotated[int, msgspec.Meta(ge=0, le=_INT63)] = 0
    content: Annotated[bytes, msgspec.Meta(max_length=INLINE_MAX)] = b""
    link: _Bytes = b""
    rdev: Annotated[int, msgspec.Meta(ge=0, le=_INT63)] = 0
    xattrs: dict[_Bytes, _Bytes] | None = None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Row])


def build_listing(rows: Iterable[Row]) -> bytes:
    """Write a listing of ``rows``."""
    parts = [_HEADER.pack(LISTING_MAGIC, LISTING_VERSION, 0)]
    left = iter(rows)
    while run := list(islice(left, _RUN_ROWS)):
        data = _encoder.encode(run)
        parts += (_RUN.pack(len(data)), data)
    return b"".join(parts)


def read_listing(buffer: Buffer | mmap.mmap) -> Iterator[Row]:
    """Yield the rows of a listing in its order. ``IntegrityError`` and ``UnsupportedError`` come where they show, so after sound rows."""
    view = memoryview(buffer)
    magic, version, flags = _HEADER.unpack_from(view, 0) if len(view) >= _HEADER.size else (b"", 0, 0)
    if magic != LISTING_MAGIC:
        raise IntegrityError("not a listing of a layer")
    if version != LISTING_VERSION or flags:
        raise UnsupportedError(f"listing version {version}, flags {flags:#x}: not known", hint="a newer version of ImageFS wrote it")
    at = _HEADER.size
    while at < len(view):
        start = at + _RUN.size
        end = start + _RUN.unpack_from(view, at)[0] if start <= len(view) else start
        if end > len(view):
            raise IntegrityError("listing of a layer: it is cut off")
        try:
            rows = _decoder.decode(view[start:end])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise IntegrityError(f"listing of a layer: {error}") from None
        for row in rows:
            _check(row)
            yield row
        at = end


def _check(row: Row) -> None:
    """Raise ``IntegrityError`` for a row whose fields no entry has together."""
    kind = row.kind
    if kind == FILE:
        is_sound = len(row.content) == (row.size if row.size <= INLINE_MAX else DIGEST_SIZE) and not (row.link or row.rdev)
    elif kind < _MARKERS:
        is_sound = not (row.size or row.content)
    else:
        is_sound = row == Row(row.path, kind)
    if not is_sound:
        raise IntegrityError(f"listing of a layer: a {KINDS[kind]} with fields that it cannot have")
