"""A streaming tar reader: a layer's bytes in, its entries and their data out.

What it promises:

- Every entry has one meaning or is refused with ``SourceError`` that names the place; nothing is guessed, truncated or skipped
  in silence. Where tar formats leave a choice, the one that Go's ``archive/tar`` makes is taken, because the engines that wrote the
  image and those that run it elsewhere use it.
- Paths are relative to the image's root and cannot leave it (:func:`~imagefs.convert.tar_header.clean_path`).
- Memory is bounded by one chunk, one pax header and one sparse map, whatever the sizes in the archive say.
- Data is not copied: pieces are views into the chunks, one piece for a file that lies within a chunk.

One thread owns a reader. What does not live here: decompression and digests (the chunks come from elsewhere), what a header means
(:mod:`imagefs.convert.tar_entry`), and what entries do to the tree (:mod:`imagefs.convert.flatten`).
"""

from collections.abc import Iterable, Iterator
from typing import Final

from imagefs.convert import sparse
from imagefs.convert.entry import Entry, Kind
from imagefs.convert.pax import PAX_MAX, Records, parse_global, parse_records
from imagefs.convert.tar_entry import KINDS, WHITEOUT, apply_records, as_whiteout, check, complete
from imagefs.convert.tar_header import BLOCK, GNU_MAGIC, HEADER, ZERO_BLOCK, checksum_fits, clean_path, number, prefix_of, shown, text
from imagefs.errors import ImageFSError, LimitError, SourceError, UnsupportedError

METADATA_MAX: Final = 4 << 30
"""Most bytes of headers in one layer: about eight million entries. It bounds the memory that a small, well compressed layer can ask for."""

HOLES_MAX: Final = 512 << 30
"""Most bytes of holes in one layer: each must be hashed, and an archive of a kilobyte can claim exabytes."""

_LONG_MAX: Final = 1 << 20
"""Most bytes of a GNU long name that are read before its length is judged as a path's."""


class _Pending:
    """What extension headers say about the entry that follows them."""

    __slots__ = ("link", "name", "records")

    def __init__(self) -> None:
        self.records: Records | None = None
        self.name: bytes | None = None
        self.link: bytes | None = None


class TarReader:
    """Iterates the entries of one layer, once; after each, :meth:`pieces` gives its data.

    ``chunks`` yields the uncompressed layer in ``bytes`` of any size. When the iteration ends, all chunks have been taken, so that
    whoever makes them could check the whole. The exceptions of ``chunks`` pass through.
    """

    def __init__(
        self, chunks: Iterable[bytes], *, layer: str = "the layer", max_metadata: int = METADATA_MAX, max_holes: int = HOLES_MAX
    ) -> None:
        """Read nothing yet. ``layer`` is what messages call it.

        ``max_metadata`` and ``max_holes`` bound headers and holes, in bytes; ``LimitError`` past them.
        """
        self._chunks = iter(chunks)
        self._layer = layer
        self._buffer = b""
        self._view = memoryview(b"")
        self._position = 0
        self._base = 0
        self._left = 0
        self._padding = 0
        self._serial = 0
        self._metadata_left = max_metadata
        self._holes_left = max_holes
        self._globals: Records = {}
        self._last = b""
        self._done = False
        self._stream_error: ImageFSError | None = None

    # -- the caller's side ----------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        """Return the reader itself."""
        return self

    def __next__(self) -> Entry:
        """Skip what is left of the current entry's data and return the next entry.

        ``SourceError`` for a malformed or truncated archive, ``UnsupportedError`` for entry types that no container engine unpacks.
        """
        try:
            entry = self._next()
        except ImageFSError as error:
            if error is self._stream_error:
                raise
            raise self._located(error) from error
        self._last = entry.path
        return entry

    def pieces(self) -> Iterator[memoryview]:
        """Yield the current entry's stored data as views: all of it, or a sparse file's segments back to back.

        Belongs to the current entry: once the next one is asked for, it yields nothing more.
        """
        serial = self._serial
        while self._left and serial == self._serial:
            position = self._position
            piece = self._view[position : position + self._left]
            taken = len(piece)
            if taken:
                self._position = position + taken
                self._left -= taken
                yield piece
            elif not self._refill():
                raise self._located(SourceError("the layer ends inside a file's data"))

    def _located(self, error: ImageFSError) -> ImageFSError:
        where = f"after {shown(self._last)}, " if self._last else ""
        return type(error)(f"{error.message} ({where}near byte {self._base + self._position} of {self._layer})", hint=error.hint)

    # -- the stream -----------------------------------------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Replace the used-up buffer by the next chunk that is not empty; False at the end."""
        try:
            for chunk in self._chunks:
                if chunk:
                    self._base += len(self._buffer)
                    self._buffer = chunk
                    self._view = memoryview(chunk)
                    self._position = 0
                    return True
        except ImageFSError as error:
            self._stream_error = error
            raise
        return False

    def _take(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer at the end of the stream. For headers: the bytes are copied."""
        parts = []
        while count:
            part = self._buffer[self._position : self._position + count]
            if part:
                self._position += len(part)
                count -= len(part)
                parts.append(part)
            elif not self._refill():
                break
        return b"".join(parts)

    def _block(self) -> bytes | None:
        """Return the next block; None where the stream ends at a block's border."""
        position = self._position
        block = self._buffer[position : position + BLOCK]
        if len(block) == BLOCK:
            self._position = position + BLOCK
        else:
            block = self._take(BLOCK)
            if not block:
                return None
            if len(block) < BLOCK:
                raise SourceError("the layer ends inside a header")
        self._metadata_left -= BLOCK
        if self._metadata_left < 0:
            raise LimitError("the layer has more bytes of headers than an image may have")
        return block

    def _needed_block(self) -> bytes:
        block = self._block()
        if block is None:
            raise SourceError("the layer ends inside a header")
        return block

    def _skip(self) -> None:
        """Go past the rest of the current entry's data and its padding."""
        count = self._left + self._padding
        self._left = 0
        while count > (there := len(self._buffer) - self._position):
            count -= there
            self._position += there
            if not self._refill():
                # All of the data but not all of its padding: some writers end so, and nothing is missing.
                if count > self._padding:
                    raise SourceError("the layer ends inside a file's data")
                break
        else:
            self._position += count
        self._padding = 0

    def _extension(self, size: int, limit: int, what: str) -> bytes:
        """Return the body of an extension header."""
        if not 0 <= size <= limit:
            raise LimitError(f"a {what} says that it has {size} bytes; at most {limit} are read")
        padded = size + -size % BLOCK
        self._metadata_left -= padded
        if self._metadata_left < 0:
            raise LimitError("the layer has more bytes of headers than an image may have")
        body = self._take(padded)
        if len(body) < padded:
            raise SourceError(f"the layer ends inside a {what}")
        return body[:size]

    def _finish(self, pending: _Pending | None) -> None:
        """Take what follows the end of the archive: its makers pad it, and whoever makes the chunks checks them to the end."""
        self._done = True
        if pending is not None:
            raise SourceError("the layer ends with an extension header that no entry follows")
        while self._refill():
            pass
        self._position = len(self._buffer)

    # -- entries --------------------------------------------------------------------------------------------------------------------

    def _next(self) -> Entry:
        self._serial += 1
        pending: _Pending | None = None
        while not self._done:
            if self._left or self._padding:
                self._skip()
            block = self._block()
            if block is None:
                self._finish(pending)
                break
            if not block[0] and block == ZERO_BLOCK:
                second = self._block()
                if second is not None and second != ZERO_BLOCK:
                    raise SourceError("a block of zeros is followed by something that is not the archive's end")
                self._finish(pending)
                break
            fields = HEADER.unpack(block)
            if not checksum_fits(block, fields[6]):
                raise SourceError("the header's checksum is wrong")
            flag = fields[7]
            if flag in b"xgLK":
                pending = self._extend(flag, number(fields[4]), pending)
                continue
            entry = self._entry(block, fields, pending)
            if entry is not None:
                return entry
            pending = None
        raise StopIteration

    def _extend(self, flag: bytes, size: int, pending: _Pending | None) -> _Pending | None:
        """Read an extension header into what is pending for the next entry."""
        if flag == b"g":
            self._globals = {**self._globals, **parse_global(self._extension(size, PAX_MAX, "global pax header"))}
            return pending
        pending = pending or _Pending()
        if flag == b"x":
            pending.records = parse_records(self._extension(size, PAX_MAX, "pax header"))
        elif flag == b"L":
            pending.name = text(self._extension(size, _LONG_MAX, "long name"))
        else:
            pending.link = text(self._extension(size, _LONG_MAX, "long link name"))
        return pending

    def _entry(self, block: bytes, fields: tuple[bytes, ...], pending: _Pending | None) -> Entry | None:
        """Turn a header into an entry; None for one that means nothing outside the machine that wrote it."""
        name, mode, uid, gid, size, mtime, _, flag, link, magic, major, minor, prefix, trailer = fields
        name = text(name)
        if prefix[0] and (directory := prefix_of(magic, prefix, trailer)):
            name = directory + b"/" + name
        link = text(link)
        stored = number(size)
        entry = Entry(name, Kind.FILE, number(mode) & 0o7777, number(uid), number(gid), number(mtime) * 1_000_000_000)
        records = self._globals
        if pending is not None:
            if pending.records:
                records = {**records, **pending.records} if records else pending.records
            if records:
                name, link, stored = apply_records(entry, records, name, link, stored)
            if pending.name is not None:
                name = pending.name
            if pending.link is not None:
                link = pending.link
        elif records:
            name, link, stored = apply_records(entry, records, name, link, stored)
        check(entry, name, stored)
        kind = KINDS.get(flag)
        if kind is None:
            raise UnsupportedError(f"{shown(name)} is an entry of unknown type {flag!r}")
        entry.path = path = clean_path(name)
        if kind is Kind.FILE:
            if flag == b"\0" and name.endswith(b"/"):
                entry.kind = Kind.DIR
            else:
                self._left = entry.size = stored
                self._padding = -stored & (BLOCK - 1)
                if flag == b"S" or records:
                    path = self._sparse(entry, block, flag, magic, records)
        else:
            # As in Go, only regular files have data, whatever the size field says.
            entry.kind = kind
            if kind is not Kind.DIR:
                complete(entry, link, magic, major, minor)
        if not path and entry.kind is not Kind.DIR:
            raise SourceError("the layer makes the image's root something that is not a directory")
        if WHITEOUT in path:
            return as_whiteout(entry)
        return entry

    def _sparse(self, entry: Entry, block: bytes, flag: bytes, magic: bytes, records: Records) -> bytes:
        """Give a sparse file its logical size and its segments; return its path, which format 0.1 and 1.0 keep elsewhere."""
        if flag == b"S":
            if magic != GNU_MAGIC:
                raise SourceError(f"{shown(entry.path)} is a sparse file of GNU's kind in an archive of another")
            # Extension headers come before the data and are not counted in its size.
            size, numbers = sparse.old_gnu(block, self._needed_block)
        else:
            form = sparse.pax_format(records)
            if form is None:
                return entry.path
            size = sparse.pax_size(records)
            if b"GNU.sparse.name" in records:
                entry.path = clean_path(records[b"GNU.sparse.name"])
            if form == "0":
                numbers = sparse.pax_map(records)
            else:
                taken, numbers = sparse.map_in_data(self._needed_block)
                self._left -= taken
                if self._left < 0:
                    raise SourceError("the sparse map is longer than the file's data")
        stored = self._left
        entry.sparse = sparse.checked(numbers, size, stored)
        entry.size = size
        if stored == size:
            entry.sparse = None
        self._holes_left -= size - stored
        if self._holes_left < 0:
            raise LimitError(f"{shown(entry.path)} brings the layer's holes past what one layer may have")
        return entry.path
