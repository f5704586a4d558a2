"""The tar reader over a stream: where chunks end, what is skipped, how an archive ends, cuts, and damage."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.convert.entry import Kind
from imagefs.convert.tar import TarReader
from imagefs.errors import LimitError, SourceError, UnsupportedError
from tests.convert.tarmaker import patched
from tests.convert.tarreads import chunked, plain, read, refused, sample
from tests.corpus import rawtar
from tests.corpus.rawtar import BLOCK, archive, header, pax


@pytest.mark.parametrize("size", [1, 3, 511, 512, 513, 1000, 4096])
def test_where_chunks_end_does_not_matter(size: int) -> None:
    assert plain(sample(), size) == plain(sample(), 1 << 20)


def test_empty_chunks() -> None:
    chunks = [part for chunk in chunked(sample(), 700) for part in (b"", chunk, b"")]
    assert [entry.path for entry in TarReader(chunks)] == [entry.path for entry, _ in read(sample())]


def test_a_file_within_a_chunk_is_one_piece_and_no_copy() -> None:
    chunk = archive(rawtar.file(b"a", b"x" * 200_000), rawtar.file(b"b"))
    reader = TarReader([chunk])
    next(reader)
    (piece,) = reader.pieces()
    assert piece.obj is chunk
    assert len(piece) == 200_000
    next(reader)
    assert list(reader.pieces()) == []


def test_pieces_are_as_few_as_chunks() -> None:
    reader = TarReader(chunked(archive(rawtar.file(b"a", b"x" * 10_000)), 4096))
    next(reader)
    assert [len(piece) for piece in reader.pieces()] == [4096 - 512, 4096, 10_000 - 8192 + 512]


def test_unread_and_half_read_data_is_skipped() -> None:
    reader = TarReader(chunked(archive(rawtar.file(b"a", b"x" * 5000), rawtar.file(b"b", b"y" * 5000), rawtar.file(b"c", b"z")), 1000))
    next(reader)
    next(reader)
    stale = reader.pieces()
    assert bytes(next(stale))[:1] == b"y"
    assert next(reader).path == b"c"
    assert list(stale) == []
    assert b"".join(reader.pieces()) == b"z"


def test_the_rest_of_the_stream_is_taken() -> None:
    """So that whoever makes the chunks gets to check its digest."""
    taken: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number_of, chunk in enumerate([sample(), bytes(10_240), b"trailing"]):
            taken.append(number_of)
            yield chunk

    reader = TarReader(chunks())
    assert len(list(reader)) == 7
    assert taken == [0, 1, 2]
    assert list(reader) == []


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10_240)])
def test_ends_that_are_taken(end: bytes) -> None:
    assert [entry.path for entry, _ in read(archive(rawtar.file(b"a", b"x"), end=end))] == [b"a"]
    assert read(end) == []


def test_the_last_padding_may_be_missing() -> None:
    assert [data for _, data in read(archive(rawtar.file(b"a", b"xyz"), end=b"")[: BLOCK + 3])] == [b"xyz"]


def test_zeros_inside_an_archive_are_refused() -> None:
    refused(header(b"a"), bytes(512), header(b"b"), says="zeros")


def test_every_truncation() -> None:
    """A cut shows as an error, or leaves whole entries; never as half a file."""
    data = sample()
    whole = plain(data, 1 << 20)
    for cut in range(0, len(data) - 1024, 50):
        try:
            found = plain(data[:cut], 1 << 20)
        except SourceError as error:
            assert "ends" in error.message or "no entry" in error.message, error.message  # noqa: PT017  # both outcomes are fine
        else:
            assert found == whole[: len(found)]


def test_truncated_data_is_noticed_by_who_reads_it() -> None:
    reader = TarReader([archive(rawtar.file(b"some/file", b"x" * 5000))[:3000]])
    next(reader)
    with pytest.raises(SourceError, match=r"ends inside a file's data .*after 'some/file'"):
        list(reader.pieces())


@pytest.mark.parametrize("cut", [BLOCK, BLOCK + 1, 3000, BLOCK + 4999])
def test_truncated_data_is_noticed_when_it_is_skipped(cut: int) -> None:
    with pytest.raises(SourceError, match="ends inside a file's data"):
        list(TarReader(chunked(archive(rawtar.file(b"a", b"x" * 5000))[:cut], 1000)))


@pytest.mark.parametrize("error", [SourceError("its digest lies"), LimitError("a bomb"), OSError("disk")])
def test_errors_of_the_chunks_pass_through(error: Exception) -> None:
    def chunks() -> Iterator[bytes]:
        yield archive(rawtar.file(b"a", b"x" * 5000))[:700]
        raise error

    with pytest.raises(type(error)) as caught:
        list(TarReader(chunks()))
    assert caught.value is error
    reader = TarReader(chunks())
    next(reader)
    with pytest.raises(type(error)) as caught:
        list(reader.pieces())
    assert caught.value is error


def test_headers_are_bounded() -> None:
    data = archive(*[header(b"%d" % index) for index in range(20)])
    with pytest.raises(LimitError, match="headers"):
        list(TarReader([data], max_metadata=10 * BLOCK))
    with pytest.raises(LimitError, match="headers"):
        list(TarReader([archive(pax({b"comment": bytes(9000)}), header(b"x"))], max_metadata=10 * BLOCK))


@given(st.binary(max_size=3000), st.integers(1, 2000))
@settings(max_examples=200)
def test_noise_is_an_error_or_nothing(data: bytes, size: int) -> None:
    attempt(data, size)


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 30), st.booleans())
@settings(max_examples=300)
def test_damaged_headers_with_good_checksums(damage: list[tuple[int, int]], block_number: int, fix: bool) -> None:
    data = bytearray(sample())
    at = block_number % (len(data) // BLOCK) * BLOCK
    for offset, value in damage:
        data[at + offset] = value
    if fix:
        data[at : at + BLOCK] = patched(bytes(data[at : at + BLOCK]), 0, b"")
    attempt(bytes(data), 1000)


def attempt(data: bytes, size: int) -> None:
    """Read: whatever is in there, it gives good entries or one of our errors, and it ends."""
    with contextlib.suppress(SourceError, UnsupportedError, LimitError):
        for entry, content in read(data, size):
            assert not entry.path.startswith(b"/")
            assert not {b"..", b".", b""} & set(entry.path.split(b"/") if entry.path else [])
            assert entry.kind is not Kind.FILE or entry.sparse is not None or entry.size == len(content)
            assert 0 <= entry.mode <= 0o7777
