"""Packs and frames: bytes in, bytes out. The layout is specified in ``docs/format/packs.md``.

A pack is frames back to back from offset 0, one trailer entry a frame, and a footer of fixed size.

Invariants:

- a frame holds 1 to ``MAX_FRAME`` bytes of content and never takes more bytes stored than as content;
- a parsed trailer lists frames that lie back to back inside the pack, whatever the bytes were: all counts and lengths are bounded by the
  pack's size before anything is allocated for them;
- a decoded frame has the length and the digest that were asked for, or ``IntegrityError`` is raised; decoding never allocates more than
  ``MAX_FRAME``.

What does not live here: where frames and packs end (``imagefs.convert.builder``), and reading packs from a store.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import zstandard
from blake3 import blake3

from imagefs.digest import DIGEST_SIZE, Buffer, Hasher, digest_of
from imagefs.errors import IntegrityError, UnsupportedError

CODEC_RAW: Final = 0
"""The frame is stored as it is."""

CODEC_ZSTD: Final = 1
"""The frame is stored as one zstd frame that states its content size and uses no dictionary."""

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of content in a frame, at most: what a reader is asked to hold at once."""

PACK_MAGIC: Final = b"IMFSPACK"
PACK_VERSION: Final = 1

ENTRY_SIZE: Final = 56
"""Bytes of one trailer entry."""

FOOTER_SIZE: Final = 64
"""Bytes of the footer, the last of the pack."""

_ENTRY: Final = struct.Struct("<32sQIIII")
_FOOTER: Final = struct.Struct("<8sIIIIQ32s")


class FrameEntry(NamedTuple):
    """Where one frame of a pack is.

    ``digest`` is that of the content; ``offset`` and ``stored`` are bytes in the pack; ``length`` is the content's size in bytes.
    """

    digest: bytes
    offset: int
    stored: int
    length: int
    codec: int


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack ready to be stored: ``parts`` back to back are its ``size`` bytes, ``digest`` is their BLAKE3."""

    digest: bytes
    parts: list[Buffer]
    size: int
    entries: list[FrameEntry]


def build_pack(frames: Sequence[tuple[bytes, int, int, Buffer]]) -> Pack:
    """Lay out ``frames``, given as (digest, content length, codec, stored bytes), in their order. Nothing is copied.

    ``ValueError`` for a frame that the format cannot hold, and for no frames at all.
    """
    if not frames:
        raise ValueError("a pack holds at least one frame")
    entries: list[FrameEntry] = []
    parts: list[Buffer] = []
    rows: list[bytes] = []
    hasher = Hasher()
    offset = 0
    for digest, length, codec, data in frames:
        stored = len(data)
        if not _is_sound(length, stored, codec) or len(digest) != DIGEST_SIZE:
            raise ValueError(f"not a frame: content {length} bytes, stored {stored} bytes, codec {codec}")
        entries.append(FrameEntry(digest, offset, stored, length, codec))
        rows.append(_ENTRY.pack(digest, offset, stored, length, codec, 0))
        parts.append(data)
        hasher.update(data)
        offset += stored
    trailer = b"".join(rows)
    size = offset + len(trailer) + FOOTER_SIZE
    end = trailer + _FOOTER.pack(PACK_MAGIC, PACK_VERSION, 0, len(entries), 0, size, digest_of(trailer))
    hasher.update(end)
    parts.append(end)
    return Pack(hasher.digest(), parts, size, entries)


def pack_key_of(frame_digests: Iterable[bytes]) -> bytes:
    """Return the ``key`` of a pack: the BLAKE3 of its frames' digests in order. It is known before anything is compressed."""
    return digest_of(b"".join(frame_digests))


def tail_size(footer: Buffer, pack_size: int) -> int:
    """Return how many bytes at the end of the pack are trailer and footer, from its last ``FOOTER_SIZE`` bytes (or more).

    ``IntegrityError`` if that is not the footer of a pack of ``pack_size`` bytes, ``UnsupportedError`` for another version.
    """
    return _parse_footer(footer, pack_size)[0] * ENTRY_SIZE + FOOTER_SIZE


def parse_trailer(tail: Buffer, pack_size: int) -> list[FrameEntry]:
    """Read the list of frames from the last bytes of a pack (``tail_size`` of them, or more).

    ``IntegrityError`` if they are damaged, too few, or do not describe a pack of ``pack_size`` bytes; ``UnsupportedError`` for an
    unknown version, flag or codec.
    """
    count, trailer_digest = _parse_footer(tail, pack_size)
    start = len(tail) - FOOTER_SIZE - count * ENTRY_SIZE
    if start < 0:
        raise IntegrityError("pack trailer: fewer bytes than its footer states")
    trailer = memoryview(tail)[start : len(tail) - FOOTER_SIZE]
    if digest_of(trailer) != trailer_digest:
        raise IntegrityError("pack trailer: damaged")
    entries: list[FrameEntry] = []
    position = 0
    for digest, offset, stored, length, codec, reserved in _ENTRY.iter_unpack(trailer):
        if codec not in (CODEC_RAW, CODEC_ZSTD) or reserved:
            raise UnsupportedError(f"pack: codec {codec} is not known", hint="a newer version of ImageFS wrote it")
        if offset != position or not _is_sound(length, stored, codec):
            raise IntegrityError("pack trailer: frames do not lie back to back")
        entries.append(FrameEntry(digest, offset, stored, length, codec))
        position += stored
    if position != pack_size - FOOTER_SIZE - count * ENTRY_SIZE:
        raise IntegrityError("pack trailer: frames do not fill the pack")
    return entries


def _parse_footer(tail: Buffer, pack_size: int) -> tuple[int, bytes]:
    """Return the number of frames and the digest of the trailer."""
    if len(tail) < FOOTER_SIZE or pack_size < len(tail):
        raise IntegrityError("pack: shorter than its footer")
    magic, version, flags, count, reserved, size, trailer_digest = _FOOTER.unpack_from(tail, len(tail) - FOOTER_SIZE)
    if magic != PACK_MAGIC:
        raise IntegrityError("not a pack: its last bytes are not a footer")
    if version != PACK_VERSION or flags or reserved:
        raise UnsupportedError(f"pack version {version}, flags {flags:#x}: not known", hint="a newer version of ImageFS wrote it")
    if size != pack_size or not 0 < count <= (pack_size - FOOTER_SIZE) // (ENTRY_SIZE + 1):
        raise IntegrityError(f"pack: the footer speaks of {count} frames in {size} bytes, the pack has {pack_size}")
    return count, trailer_digest


def _is_sound(length: int, stored: int, codec: int) -> bool:
    """Say whether a frame may be so: bounded, and stored smaller than it is or raw."""
    if codec == CODEC_RAW:
        return 0 < length <= MAX_FRAME and stored == length
    return codec == CODEC_ZSTD and 0 < length <= MAX_FRAME and 0 < stored < length


def compress_frame(data: Buffer, compressor: zstandard.ZstdCompressor) -> tuple[int, Buffer]:
    """Return (codec, stored bytes) of a frame. One that does not shrink by 10 % is stored raw, as ``data`` itself.

    ``compressor`` writes the content size and no checksum, and belongs to the calling thread.
    """
    compressed = compressor.compress(data)
    if len(compressed) * 10 <= len(data) * 9:
        return CODEC_ZSTD, compressed
    return CODEC_RAW, data


def decode_frame(stored: Buffer, codec: int, length: int, digest: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """Return the content of a frame, verified.

    ``length`` is the content's size in bytes, ``digest`` its name. ``IntegrityError`` if the bytes are not that content,
    ``UnsupportedError`` for an unknown codec. ``decompressor`` belongs to the calling thread.
    """
    if not 0 < length <= MAX_FRAME:
        raise IntegrityError(f"frame {digest.hex()}: {length} bytes are not a frame's length")
    if codec == CODEC_ZSTD:
        try:
            # The library allocates what the data states, whatever max_output_size says: so look first.
            if zstandard.frame_content_size(stored) != length:
                raise IntegrityError(f"frame {digest.hex()}: states another length than {length}")
            data = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"frame {digest.hex()}: does not decompress: {error}") from None
    elif codec == CODEC_RAW:
        data = stored if isinstance(stored, bytes) else bytes(stored)
    else:
        raise UnsupportedError(f"frame {digest.hex()}: codec {codec} is not known", hint="a newer version of ImageFS wrote it")
    if len(data) != length or blake3(data).digest() != digest:
        raise IntegrityError(f"frame {digest.hex()}: its bytes have another digest")
    return data
