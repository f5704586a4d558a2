"""Packs and frames: how content lies in the store. Pure: bytes in, bytes out. ``docs/format/packs.md`` is the specification.

A pack is frames back to back, a trailer entry for each, and a footer of fixed size at its end, so that it can be read from either end: with an
object map, by ranges; without one, from its last bytes.

Invariants: a pack is named by the BLAKE3-256 of all its bytes; a frame by that of its *uncompressed* bytes. No function here returns
content that was not checked against its name. Whatever the bytes, only ``IntegrityError`` and ``UnsupportedError`` are raised, and
no more than ``MAX_FRAME`` bytes are allocated for a frame.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import google_crc32c
import zstandard

from imagefs.digest import Buffer, Hasher, digest_of
from imagefs.errors import IntegrityError, UnsupportedError

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of content in a frame, at most. Bounds what a reader allocates before it has verified anything."""

MAX_FRAMES: Final = 1 << 20
"""Frames in a pack, at most."""

PACK_MAGIC: Final = b"IFSPACK\0"
PACK_VERSION: Final = 1

# digest, offset, stored, length, codec, reserved
_ENTRY: Final = struct.Struct("<32sQIIII")
# magic, version, flags, frame count, trailer CRC32C, reserved
_FOOTER: Final = struct.Struct("<8sHHIII")

TRAILER_ENTRY_SIZE: Final = _ENTRY.size
FOOTER_SIZE: Final = _FOOTER.size


class FrameEntry(NamedTuple):
    """A frame in a pack: ``offset`` and ``stored`` are its place and size in the pack, ``length`` its size uncompressed, in bytes."""

    digest: bytes
    offset: int
    stored: int
    length: int
    codec: int


@dataclass(frozen=True, slots=True)
class Pack:
    """A finished pack: ``parts`` back to back are its ``size`` bytes, and ``digest`` is their BLAKE3."""

    digest: bytes
    parts: list[Buffer]
    size: int
    entries: list[FrameEntry]


def pack_key_of(frame_digests: Iterable[bytes]) -> bytes:
    """Name a run of frames by what is in it: the BLAKE3 of the frames' digests in order. Known before anything is compressed."""
    return digest_of(b"".join(frame_digests))


def compress_frame(data: Buffer, compressor: zstandard.ZstdCompressor) -> tuple[int, Buffer]:
    """Return (codec, stored bytes). What does not shrink by a tenth is stored raw: it would cost each reader more than it saves."""
    packed = compressor.compress(data)
    if len(packed) * 10 > len(data) * 9:
        return CODEC_RAW, data
    return CODEC_ZSTD, packed


def decode_frame(stored: Buffer, codec: int, length: int, digest: bytes, decompressor: zstandard.ZstdDecompressor) -> Buffer:
    """Return the ``length`` bytes of a frame, verified against ``digest``. ``IntegrityError`` if they are anything else."""
    if not 0 < length <= MAX_FRAME:
        raise IntegrityError(f"frame of {length} bytes: at most {MAX_FRAME} are allowed")
    data: Buffer
    if codec == CODEC_ZSTD:
        try:
            if zstandard.frame_content_size(stored) != length:
                raise IntegrityError(f"frame {digest.hex()}: its compressed form does not hold {length} bytes")
            data = decompressor.decompress(stored, max_output_size=length)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"frame {digest.hex()}: {error}") from error
    elif codec == CODEC_RAW:
        data = stored
    else:
        raise UnsupportedError(f"frame {digest.hex()} has codec {codec}, which this version does not know", hint="update imagefs")
    if len(data) != length or digest_of(data) != digest:
        raise IntegrityError(f"frame {digest.hex()}: its bytes do not have that digest")
    return data


def build_pack(frames: Sequence[tuple[bytes, int, int, Buffer]]) -> Pack:
    """Lay out frames, given as (digest, length, codec, stored bytes), as a pack."""
    entries = []
    parts: list[Buffer] = []
    rows = bytearray()
    offset = 0
    for digest, length, codec, stored in frames:
        size = len(stored)
        entries.append(FrameEntry(digest, offset, size, length, codec))
        rows += _ENTRY.pack(digest, offset, size, length, codec, 0)
        parts.append(stored)
        offset += size
    parts += (rows, _FOOTER.pack(PACK_MAGIC, PACK_VERSION, 0, len(entries), google_crc32c.value(bytes(rows)), 0))
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    return Pack(hasher.digest(), parts, offset + len(rows) + FOOTER_SIZE, entries)


def trailer_size(footer: Buffer) -> int:
    """Return how many bytes before the end of a pack its trailer and footer take, from its last ``FOOTER_SIZE`` bytes."""
    if len(footer) != FOOTER_SIZE:
        raise IntegrityError(f"a pack's footer has {FOOTER_SIZE} bytes, not {len(footer)}")
    magic, version, flags, count, _, _ = _FOOTER.unpack(footer)
    if magic != PACK_MAGIC:
        raise IntegrityError("not a pack: its last bytes are not a pack's footer")
    if version != PACK_VERSION or flags:
        raise UnsupportedError(f"pack of version {version} with flags {flags:#x}: this version reads {PACK_VERSION}", hint="update imagefs")
    if count > MAX_FRAMES:
        raise IntegrityError(f"a pack of {count} frames: at most {MAX_FRAMES} are allowed")
    return count * TRAILER_ENTRY_SIZE + FOOTER_SIZE


def parse_trailer(tail: Buffer, pack_size: int) -> list[FrameEntry]:
    """Return the frames of a pack of ``pack_size`` bytes from its last bytes ``tail`` (at least trailer and footer of them)."""
    view = memoryview(tail)
    size = trailer_size(view[-FOOTER_SIZE:])
    if size > len(view) or size > pack_size:
        raise IntegrityError("a pack's trailer goes past its start")
    rows = view[len(view) - size : len(view) - FOOTER_SIZE]
    if google_crc32c.value(bytes(rows)) != _FOOTER.unpack(view[-FOOTER_SIZE:])[4]:
        raise IntegrityError("a pack's trailer does not have the checksum that its footer says")
    entries = []
    expected = 0
    for digest, offset, stored, length, codec, reserved in _ENTRY.iter_unpack(rows):
        if offset != expected or not 0 < stored <= MAX_FRAME or not 0 < length <= MAX_FRAME:
            raise IntegrityError(f"a pack's trailer has frame {digest.hex()} where it cannot be")
        if codec > CODEC_ZSTD or reserved:
            raise UnsupportedError(f"frame {digest.hex()} has codec {codec}, which this version does not know", hint="update imagefs")
        entries.append(FrameEntry(digest, offset, stored, length, codec))
        expected = offset + stored
    if expected != pack_size - size:
        raise IntegrityError("a pack's frames do not fill it")
    return entries
