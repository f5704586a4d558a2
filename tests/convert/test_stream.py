"""Layers are decompressed and verified off the consumer's thread."""

import gzip
import io
import random
import threading
import time
from typing import Any

import pytest
import zstandard

from imagefs.convert.stream import GZIP, PLAIN, ZSTD, BlobChecks, LayerBlob, LayerStream, Limits
from imagefs.errors import ImageFSError, LimitError, SourceError
from tests.convert.archives import blob

pytestmark = pytest.mark.timeout(60)

CONTENT = random.Random(1).randbytes(1_500_000) + bytes(3_000_000) + b"end"


def squeezed(kind: str, content: bytes = CONTENT) -> bytes:
    if kind == GZIP:
        return gzip.compress(content, 1, mtime=0)
    return zstandard.ZstdCompressor(level=1).compress(content) if kind == ZSTD else content


def read(layer: LayerBlob, limits: Limits | None = None) -> bytes:
    with LayerStream(layer, limits or Limits()) as stream:
        data = b"".join(stream.chunks())
        stream.finish()
        assert (stream.bytes_in, stream.bytes_out) == (layer.size, len(data))
    return data


@pytest.mark.parametrize("kind", [GZIP, ZSTD, PLAIN])
def test_content_comes_whole_in_bounded_chunks(kind: str) -> None:
    layer = blob(squeezed(kind), CONTENT, kind)
    with LayerStream(layer, Limits()) as stream:
        chunks = list(stream.chunks())
    assert b"".join(chunks) == CONTENT
    assert 0 < min(map(len, chunks)) <= max(map(len, chunks)) <= 1 << 20


@pytest.mark.parametrize("kind", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("said", [GZIP, ZSTD, PLAIN])
def test_what_is_there_counts_not_the_media_type(kind: str, said: str) -> None:
    assert read(blob(squeezed(kind), CONTENT, said)) == CONTENT


@pytest.mark.parametrize("content", [b"", b"x", b"xyz"])
def test_layers_shorter_than_a_magic_number(content: bytes) -> None:
    assert read(blob(content, content, PLAIN)) == content


@pytest.mark.parametrize("kind", [GZIP, ZSTD])
def test_several_members_are_one_layer(kind: str) -> None:
    assert read(blob(squeezed(kind, b"one") + squeezed(kind), b"one" + CONTENT, kind)) == b"one" + CONTENT


@pytest.mark.parametrize("zeros", [1, 511, 3 << 20])
def test_zeros_may_follow_gzip(zeros: int) -> None:
    assert read(blob(squeezed(GZIP) + bytes(zeros), CONTENT, GZIP)) == CONTENT


@pytest.mark.parametrize("kind", [GZIP, ZSTD])
@pytest.mark.parametrize("tail", [b"x", b"\0\0garbage" * 100, b"\x1f\x8b"])
def test_nothing_else_may_follow(kind: str, tail: bytes) -> None:
    with pytest.raises(SourceError):
        read(blob(squeezed(kind) + tail, CONTENT, kind))


@pytest.mark.parametrize("kind", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("cut", [1, 9, 700_000])
def test_an_early_end_is_seen_although_the_digest_fits(kind: str, cut: int) -> None:
    with pytest.raises(SourceError):
        read(blob(squeezed(kind)[:-cut], CONTENT, kind))


@pytest.mark.parametrize("kind", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("lie", [{"digest": "sha256:" + "0" * 64}, {"diff_id": "sha256:" + "0" * 64}, {"size": 7}])
def test_lies_are_seen_also_by_a_consumer_that_stopped_early(kind: str, lie: dict[str, Any]) -> None:
    with LayerStream(blob(squeezed(kind), CONTENT, kind, **lie), Limits()) as stream:
        next(stream.chunks())
        with pytest.raises(SourceError):
            stream.finish()


@pytest.mark.parametrize("kind", [GZIP, ZSTD])
def test_every_flipped_byte_is_seen(kind: str) -> None:
    content = b"some content " * 20
    stored = squeezed(kind, content)
    for place in range(len(stored)):
        damaged = bytearray(stored)
        damaged[place] ^= 0x41
        with pytest.raises(ImageFSError):
            read(blob(bytes(damaged), content, kind, digest=blob(stored, content, kind).digest))


def test_limits() -> None:
    with pytest.raises(LimitError):
        read(blob(squeezed(GZIP), CONTENT, GZIP), Limits(max_layer_bytes=2_000_000))
    window = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    stored = zstandard.ZstdCompressor(compression_params=window).compressobj(size=-1)
    with pytest.raises(LimitError):
        read(blob(stored.compress(b"x") + stored.flush(), b"x", ZSTD))


@pytest.mark.parametrize("kind", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("read_first", [0, 1, 3])
def test_leaving_early_ends_all_threads(kind: str, read_first: int) -> None:
    before = set(threading.enumerate())
    content = bytes(64 << 20)
    start = time.monotonic()
    with LayerStream(blob(squeezed(kind, content), content, kind), Limits()) as stream:
        chunks = stream.chunks()
        for _ in range(read_first):
            next(chunks)
    assert time.monotonic() - start < 5
    assert set(threading.enumerate()) <= before


class Broken(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


def test_a_blob_that_cannot_be_read_is_an_error_of_the_source() -> None:
    with pytest.raises(SourceError, match="Input/output error"):
        read(blob(b"", b"", GZIP, Broken))


def test_so_is_one_of_which_only_the_digest_is_looked_at() -> None:
    checks = BlobChecks()
    with pytest.raises(SourceError, match=r"layer sha256:.* cannot be read: .*Input/output error"), checks:
        checks.add(blob(b"stored", b"", GZIP, Broken))
