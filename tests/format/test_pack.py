"""Packs and frames: what is laid out is read back, and what was touched is refused."""

import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError, UnsupportedError
from imagefs.format.pack import (
    CODEC_RAW,
    CODEC_ZSTD,
    ENTRY_SIZE,
    FOOTER_SIZE,
    Pack,
    build_pack,
    compress_frame,
    decode_frame,
    pack_key_of,
    parse_trailer,
    tail_size,
)

COMPRESSOR = zstandard.ZstdCompressor(level=3, write_checksum=False)


def packed(contents: list[bytes]) -> Pack:
    frames = []
    for data in contents:
        codec, stored = compress_frame(data, COMPRESSOR)
        frames.append((digest_of(data), len(data), codec, stored))
    return build_pack(frames)


def bytes_of(pack: Pack) -> bytes:
    return b"".join(bytes(part) for part in pack.parts)


@given(st.lists(st.binary(min_size=1, max_size=200) | st.integers(1, 9).map(lambda n: b"abc" * n * 100), min_size=1, max_size=12))
def test_what_is_packed_is_read_back_from_the_end_alone(contents: list[bytes]) -> None:
    pack = packed(contents)
    data = bytes_of(pack)
    assert len(data) == pack.size
    assert digest_of(data) == pack.digest
    size = tail_size(data[-FOOTER_SIZE:], len(data))
    entries = parse_trailer(data[-size:], len(data))
    assert entries == pack.entries
    for content, entry in zip(contents, entries, strict=True):
        stored = data[entry.offset : entry.offset + entry.stored]
        assert decode_frame(stored, entry.codec, entry.length, entry.digest, zstandard.ZstdDecompressor()) == content
    assert pack_key_of(entry.digest for entry in entries) == digest_of(b"".join(digest_of(content) for content in contents))


def test_what_does_not_shrink_by_a_tenth_is_raw() -> None:
    noise = random.Random(1).randbytes(100_000)
    assert compress_frame(noise, COMPRESSOR)[0] == CODEC_RAW
    assert compress_frame(noise + bytes(9_000), COMPRESSOR)[0] == CODEC_RAW
    assert compress_frame(noise + bytes(13_000), COMPRESSOR)[0] == CODEC_ZSTD


def test_every_flipped_byte_of_trailer_and_footer_is_refused() -> None:
    data = bytearray(bytes_of(packed([b"one" * 50, b"two" * 60])))
    size = 2 * ENTRY_SIZE + FOOTER_SIZE
    for at in range(len(data) - size, len(data)):
        data[at] ^= 0x41
        with pytest.raises(ImageFSError):
            parse_trailer(bytes(data[-size:]), len(data))
        data[at] ^= 0x41
    assert parse_trailer(bytes(data[-size:]), len(data))


@given(st.binary(max_size=400), st.integers(0, 1000))
def test_anything_else_is_no_pack(data: bytes, size: int) -> None:
    with pytest.raises(ImageFSError):
        parse_trailer(data, size)


def test_another_version_is_told_apart_from_damage() -> None:
    data = bytearray(bytes_of(packed([b"content" * 10])))
    data[-FOOTER_SIZE + 8] = 2
    with pytest.raises(UnsupportedError):
        tail_size(bytes(data[-FOOTER_SIZE:]), len(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: s + b"x",
        lambda s: bytes([s[0] ^ 1]) + s[1:],
        lambda s: s[:20] + bytes([s[20] ^ 1]) + s[21:],
        lambda _: b"",
        lambda _: zstandard.compress(b"other" * 100),
        lambda _: zstandard.compress(bytes(1 << 26)),
    ],
)
@pytest.mark.parametrize("codec", [CODEC_RAW, CODEC_ZSTD])
def test_a_frame_that_was_touched_is_refused(change: Callable[[bytes], bytes], codec: int) -> None:
    content = b"some content " * 40
    stored = content if codec == CODEC_RAW else COMPRESSOR.compress(content)
    decompressor = zstandard.ZstdDecompressor()
    assert decode_frame(stored, codec, len(content), digest_of(content), decompressor) == content
    with pytest.raises(IntegrityError):
        decode_frame(change(stored), codec, len(content), digest_of(content), decompressor)


def test_an_unknown_codec_is_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        decode_frame(b"x", 7, 1, digest_of(b"x"), zstandard.ZstdDecompressor())
