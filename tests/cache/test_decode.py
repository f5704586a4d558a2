"""Decoding in place: the right bytes or an error, whatever is stored."""

import contextlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.decode import decode_into
from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.objectmap import FrameRow
from imagefs.format.pack import CODEC_RAW, CODEC_ZSTD
from tests.fuse.images import noise

DATA = noise(10_000)
PACKED = zstandard.ZstdCompressor(write_checksum=False).compress(DATA)
_DECOMPRESSOR = zstandard.ZstdDecompressor()


def _decode(stored: bytes, codec: int, *, length: int = len(DATA), digest: bytes = digest_of(DATA)) -> bytes:
    target = bytearray(length)
    decode_into(memoryview(target), memoryview(stored), FrameRow(digest, 0, 0, len(stored), length, codec), _DECOMPRESSOR)
    return bytes(target)


def test_both_codecs() -> None:
    assert _decode(DATA, CODEC_RAW) == DATA
    assert _decode(PACKED, CODEC_ZSTD) == DATA


def test_other_content_is_refused() -> None:
    other = bytes([DATA[0] ^ 1]) + DATA[1:]
    with pytest.raises(IntegrityError):
        _decode(other, CODEC_RAW)
    with pytest.raises(IntegrityError):
        _decode(zstandard.ZstdCompressor(write_checksum=False).compress(other), CODEC_ZSTD)


@pytest.mark.parametrize("length", [1, len(DATA) - 1, len(DATA) + 1])
def test_another_length_is_refused(length: int) -> None:
    for stored, codec in ((DATA, CODEC_RAW), (PACKED, CODEC_ZSTD)):
        with pytest.raises(IntegrityError):
            _decode(stored, codec, length=length)


def test_a_bomb_does_not_get_past_its_frame() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(IntegrityError):
        _decode(bomb, CODEC_ZSTD)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 24))
    with pytest.raises(IntegrityError):
        _decode(unsized, CODEC_ZSTD)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        _decode(DATA, 7)


@given(st.integers(0, len(PACKED) - 1), st.integers(1, 255), st.booleans())
def test_damage_anywhere_is_noticed(at: int, change: int, cut: bool) -> None:  # drawn by hypothesis
    damaged = PACKED[:at] if cut else PACKED[:at] + bytes([PACKED[at] ^ change]) + PACKED[at + 1 :]
    # A changed bit may mean the same to zstd: then the bytes are the right ones.
    with contextlib.suppress(IntegrityError):
        assert _decode(damaged, CODEC_ZSTD) == DATA
