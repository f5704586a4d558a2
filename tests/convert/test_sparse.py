"""Sparse files in all of GNU's spellings: one map out of each, and maps that lie, lack a part, or claim too much, refused."""

from collections.abc import Callable

import pytest

from imagefs.convert.entry import Kind
from imagefs.errors import LimitError, UnsupportedError
from tests.convert.tarmaker import SPARSE_FORMATS, map_of, old_sparse, pax_sparse_00, pax_sparse_01, pax_sparse_10, stored
from tests.convert.tarreads import SEGMENTS, read, refused
from tests.corpus import rawtar
from tests.corpus.rawtar import archive, header, pad, pax, pax_record

SparseMaker = Callable[..., bytes]


@pytest.mark.parametrize("make", SPARSE_FORMATS)
@pytest.mark.parametrize("size", [5_000_001, 6_000_000])
@pytest.mark.parametrize("chunk", [1 << 20, 512, 700, 1])
def test_sparse_files(make: SparseMaker, size: int, chunk: int) -> None:
    (first, data), (second, _) = read(archive(make(b"s", size, SEGMENTS), rawtar.file(b"z")), chunk)
    assert (first.path, first.kind, first.size, first.sparse) == (b"s", Kind.FILE, size, map_of(SEGMENTS))
    assert data == stored(SEGMENTS)
    assert second.path == b"z"


@pytest.mark.parametrize("make", SPARSE_FORMATS)
@pytest.mark.parametrize("count", [0, 1, 4, 5, 25, 26, 200])
def test_sparse_maps_of_every_length(make: SparseMaker, count: int) -> None:
    segments = [(7 * index + 1, b"%02d" % (index % 100)) for index in range(count)]
    ((entry, data),) = read(archive(make(b"s", 7 * count + 1, segments)))
    assert entry.sparse == map_of(segments)
    assert data == stored(segments)


@pytest.mark.parametrize("make", SPARSE_FORMATS)
def test_a_map_without_holes_is_no_sparse_file(make: SparseMaker) -> None:
    ((entry, data),) = read(archive(make(b"s", 6, [(0, b"abc"), (3, b"def"), (6, b"")])))
    assert (entry.sparse, entry.size, data) == (None, 6, b"abcdef")


@pytest.mark.parametrize("make", SPARSE_FORMATS)
@pytest.mark.parametrize(
    "says",
    [
        [(0, 3), (2, 3)],
        [(3, 3), (0, 3)],
        [(0, 3), (98, 3)],
        [(0, 3), (10, 2)],
        [(0, 3), (10, 4)],
        [(0, (1 << 63) - 1)],
        [],
    ],
)
def test_maps_that_lie(make: SparseMaker, says: list[tuple[int, int]]) -> None:
    refused(make(b"s", 100, [(0, b"abc"), (10, b"def")], says), says="sparse map")


def test_maps_with_negative_numbers() -> None:
    refused(old_sparse(b"s", 100, [(0, b"abc")], [(-5, 8)]), says="sparse map")
    refused(old_sparse(b"s", 100, [(0, b"abc")], [(50, -5), (60, 8)]), says="sparse map")
    refused(old_sparse(b"s", -1, []), says="size")
    refused(pax_sparse_01(b"s", 100, [(0, b"abc")], text=b"-5,8"), says="sparse map")


@pytest.mark.parametrize("text", [b"", b"\n", b"x\n", b"1\n0\n", b"2\n0\n1\n", b"9" * 30, b"1" * 600, b"-1\n", b"0\n0\n" + b"3" * 40])
def test_malformed_maps_before_the_data(text: bytes) -> None:
    refused(pax_sparse_10(b"s", 100, [(0, b"abc")], text=text))


def test_malformed_maps_in_records() -> None:
    for text in (b"0", b"0,1,2", b"0,x", b",", b"0,3,", b" 0,3", b"0,3,3,0", b""):
        refused(pax_sparse_01(b"s", 100, [(0, b"abc")], text=text), says="sparse map")
    body = pax_record(b"GNU.sparse.size", b"9") + pax_record(b"GNU.sparse.numbytes", b"3")
    refused(header(b"pax", b"x", size=len(body)) + pad(body), header(b"x"), says="out of order")
    refused(pax({b"GNU.sparse.map": b"0,0"}), header(b"x"), says="size")
    refused(pax({b"GNU.sparse.major": b"2", b"GNU.sparse.minor": b"0"}), header(b"x"), error=UnsupportedError, says="unknown format")
    refused(old_sparse(b"s", 9, [], magic=b"ustar\x0000"), says="GNU")


def test_numbers_of_segments_are_bounded() -> None:
    refused(pax_sparse_10(b"s", 1, [], text=b"300000\n"), error=LimitError, says="segments")
    refused(pax_sparse_01(b"s", 1, [], text=b"0,0," * 262_144 + b"0,0"), error=LimitError, says="segments")
    refused(old_sparse(b"s", 1, [], [(0, 0)] * 262_200), error=LimitError, says="segments")


def test_holes_are_bounded() -> None:
    with pytest.raises(LimitError, match="holes"):
        read(archive(*[pax_sparse_00(b"%d" % index, 1 << 36, []) for index in range(9)]))
