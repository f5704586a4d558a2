"""Which pages of memory a lineage has already: page tables in the store, and the index of them that one push looks pages up in.

A *fingerprint* is the first 16 bytes of the BLAKE3 of a page of 4096 bytes. A page is taken for another one only if all 128 bits agree.
Among 2^22 pages that are known (``PAGES_MAX``, 16 GiB of memory) and as many that are pushed, two that differ agree by chance with a
probability below 2^44 / 2^128 = 2^-84. Whoever sets out to make two such pages has to hash about 2^64, and has them in his own lineage.

A *page table* is a blob: the packs that one push wrote, their frames, and the fingerprints of the pages in them. So a push adds a table of
what it added, and never writes again what was there; the index of a lineage is its newest tables, read together. It is bounded: of all
tables, ``TABLES_MAX`` with ``PAGES_MAX`` pages are read, the newest first. What no longer fits is left out, the oldest first: pages that
only those know are stored once more, by the next push, and known again. What a push adds beyond ``FRAMES_MAX`` frames is in no table.

In memory the index is two flat buffers, the fingerprints by position and a hash table of positions, 24 to 32 bytes a page, and no Python
object for any page. A *position* is ``frame * FRAME_PAGES + page``: so what follows a page in its frame has the next position, which is
where the page that follows in the memory nearly always is, and is found without a look at the hash table.

Invariants: what is damaged, missing or made up by someone costs its savings and nothing else, as far as it can be noticed: a table is read
by its digest, each of its packs must be in the store with its size, and its numbers are checked before anything is allocated by them. That
its fingerprints are those of the frames is the word of who pushed it, like the snapshot itself.

What does not live here: cutting (``snapshotstore.pages``), and where tables are found (``snapshotstore.lineage``).
"""

import struct
from array import array
from typing import Final, NamedTuple

from imagefs.digest import Buffer, Hasher
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.pack import CODEC_RAW, CODEC_ZSTD, ENTRY_SIZE, FOOTER_SIZE, FrameEntry

PAGE: Final = 4096
FRAME_PAGES: Final = 1024
"""Pages in a frame, at most: 4 MiB."""

FINGERPRINT_SIZE: Final = 16

PAGES_MAX: Final = 1 << 22
TABLES_MAX: Final = 256
FRAMES_MAX: Final = 2 * PAGES_MAX // FRAME_PAGES
"""Frames that have positions, those of a lineage and new ones: half of them may be a lineage's, however few pages they have."""

MAX_TABLE: Final = 256 * 1024 * 1024
"""Bytes of a page table, at most: more than one of ``PAGES_MAX`` pages has."""

_MAGIC: Final = b"IMFSPAGE"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIIIQ")
_PACK: Final = struct.Struct("<32s32sQII")
_FRAME: Final = struct.Struct("<32sQIIII")
_BLOCK: Final = FRAME_PAGES * FINGERPRINT_SIZE
_WORD: Final = struct.Struct("<Q")
_FIRST: Final = struct.Struct("<Q8x")


class TablePack(NamedTuple):
    """A pack, as an object map names it: digest, key, size in bytes, frames."""

    digest: bytes
    key: bytes
    size: int
    frames: list[FrameEntry]


class PageTable(NamedTuple):
    """What one push added. ``prints`` has for each frame, through all packs, the fingerprints of its whole pages, one behind the other."""

    packs: list[TablePack]
    prints: list[Buffer]


def encode(table: PageTable) -> bytes:
    """Write a table. ``docs/format/manifest.md`` specifies it."""
    rows = [
        _PACK.pack(pack.digest, pack.key, pack.size, len(pack.frames), 0) + b"".join(_FRAME.pack(*entry, 0) for entry in pack.frames)
        for pack in table.packs
    ]
    body = b"".join((*rows, *table.prints))
    return _HEADER.pack(_MAGIC, _VERSION, 0, len(table.packs), len(table.prints), pages_in(table)) + body


def decode(data: Buffer) -> PageTable:
    """Read a table. ``IntegrityError`` for what is none, ``UnsupportedError`` for another version."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise IntegrityError("page table: shorter than its header")
    magic, version, flags, pack_count, frame_count, pages = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise IntegrityError("not a page table")
    if version != _VERSION or flags:
        raise UnsupportedError(f"page table version {version}, flags {flags:#x}: not known", hint="a newer version of ImageFS wrote it")
    size = _HEADER.size + pack_count * _PACK.size + frame_count * _FRAME.size + pages * FINGERPRINT_SIZE
    if size != len(view) or size > MAX_TABLE:
        raise IntegrityError(f"page table: its parts do not fill its {len(view)} bytes")
    at, left = _HEADER.size, frame_count
    packs: list[TablePack] = []
    for _ in range(pack_count):
        digest, key, stored, count, reserved = _PACK.unpack_from(view, at)
        at += _PACK.size
        if reserved or not 0 < count <= left:
            raise IntegrityError("page table: a pack of frames that are not there")
        left -= count
        packs.append(TablePack(digest, key, stored, _frames(view, at, count, stored)))
        at += count * _FRAME.size
    if left:
        raise IntegrityError("page table: frames that belong to no pack")
    prints: list[Buffer] = []
    for entry in (entry for pack in packs for entry in pack.frames):
        end = at + entry.length // PAGE * FINGERPRINT_SIZE
        prints.append(view[at:end])
        at = end
    if at != size:
        raise IntegrityError("page table: its frames do not have the pages that it tells")
    return PageTable(packs, prints)


def _frames(view: memoryview, at: int, count: int, size: int) -> list[FrameEntry]:
    frames: list[FrameEntry] = []
    position = 0
    for digest, offset, stored, length, codec, reserved in _FRAME.iter_unpack(view[at : at + count * _FRAME.size]):
        sound = stored == length if codec == CODEC_RAW else codec == CODEC_ZSTD and 0 < stored < length
        if reserved or not sound or offset != position or not 0 < length <= FRAME_PAGES * PAGE:
            raise IntegrityError("page table: a frame has no sound place")
        frames.append(FrameEntry(digest, offset, stored, length, codec))
        position += stored
    if position + count * ENTRY_SIZE + FOOTER_SIZE != size or len(frames) != count:
        raise IntegrityError("page table: a pack does not have its size")
    return frames


def fingerprint(page: bytes) -> bytes:
    """Return the fingerprint of a page of ``PAGE`` bytes."""
    return Hasher(page).digest(length=FINGERPRINT_SIZE)


class PageIndex:
    """The pages of one lineage that are known, and those that a push adds. Belongs to one thread."""

    __slots__ = ("_count", "_mask", "_slots", "frames", "prints")

    def __init__(self) -> None:
        """Know nothing yet. ``frames`` counts the frames that have positions; ``prints`` are the fingerprints by position."""
        self.frames = 0
        self.prints = bytearray()
        self._count = 0
        self._mask = 0
        self._slots: array[int] = array("I")
        self._resize(1 << 12)

    def __len__(self) -> int:
        """Count the pages."""
        return self._count

    def add_frame(self, prints: Buffer) -> int:
        """Take in the pages of a frame, at most ``FRAME_PAGES``, by their fingerprints; return its number."""
        number = self.open_frame()
        # What is there twice has a fingerprint here too: the pages before it lead to it.
        self.prints[number * _BLOCK : number * _BLOCK + len(prints)] = prints
        self.reserve(len(prints) // FINGERPRINT_SIZE)
        slots, mask = self._slots, self._mask
        entry = number * FRAME_PAGES
        for (word,) in _FIRST.iter_unpack(prints):
            entry += 1
            slot = word & mask
            if slots[slot]:
                at = (entry - 1) * FINGERPRINT_SIZE
                self.enter(bytes(self.prints[at : at + FINGERPRINT_SIZE]), entry - 1)
            else:
                slots[slot] = entry
                self._count += 1
        return number

    def open_frame(self) -> int:
        """Return the number of a new frame without pages."""
        # Fingerprints that are all zero are those of no page: of 2^22, one with a probability of 2^-106.
        if self.frames < FRAMES_MAX:
            self.prints += bytes(_BLOCK)
        self.frames += 1
        return self.frames - 1

    def reserve(self, pages: int) -> None:
        """Have room for so many pages more, as far as the bounds allow. Told late, or never, it costs twice as much."""
        wanted = min(self._count + pages, PAGES_MAX)
        if 2 * wanted >= self._mask:
            self._resize(1 << (2 * wanted).bit_length())

    def enter(self, name: bytes, position: int) -> int:
        """Return the position of the page with this fingerprint; if there is none, it is the one at ``position`` from now on.

        That is in a frame that was opened. Past the bounds a page is not kept in mind, and will not be found.
        """
        if 2 * self._count >= self._mask:
            self._resize(2 * (self._mask + 1))
        slot = self._slot(name)
        if entry := self._slots[slot]:
            return entry - 1
        at = position * FINGERPRINT_SIZE
        if at < len(self.prints):
            self.prints[at : at + FINGERPRINT_SIZE] = name
            if self._count < PAGES_MAX:
                self._slots[slot] = position + 1
                self._count += 1
        return position

    def find(self, name: bytes) -> int:
        """Return the position of the page with this fingerprint, or -1."""
        return self._slots[self._slot(name)] - 1

    def _slot(self, name: bytes) -> int:
        """Return the slot of this fingerprint, or the free one where it would be."""
        slots, mask, prints = self._slots, self._mask, self.prints
        slot: int = _WORD.unpack_from(name)[0] & mask
        while entry := slots[slot]:
            at = (entry - 1) * FINGERPRINT_SIZE
            if prints[at : at + FINGERPRINT_SIZE] == name:
                break
            slot = (slot + 1) & mask
        return slot

    def of_frame(self, number: int, pages: int) -> bytes:
        """Return the fingerprints of the first ``pages`` pages of a frame."""
        at = number * _BLOCK
        return bytes(self.prints[at : at + pages * FINGERPRINT_SIZE])

    def _resize(self, size: int) -> None:
        """Make the hash table ``size`` slots, a power of two, large."""
        old = self._slots
        self._mask = mask = size - 1
        self._slots = slots = array("I", bytes(4 * size))
        prints = self.prints
        for entry in old:
            if entry:
                slot = _WORD.unpack_from(prints, (entry - 1) * FINGERPRINT_SIZE)[0] & mask
                while slots[slot]:
                    slot = (slot + 1) & mask
                slots[slot] = entry


def pages_in(table: PageTable) -> int:
    """Count the pages of a table."""
    return sum(map(len, table.prints)) // FINGERPRINT_SIZE
