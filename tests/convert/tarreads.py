"""What the tests of the tar reader share: reading an archive whole, what a refusal looks like, and one archive of many kinds of members."""

from collections.abc import Iterator
from typing import Final

import pytest

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.tar import TarReader
from imagefs.errors import ImageFSError, SourceError
from tests.convert.tarmaker import GNU, Segments, old_sparse, pax_sparse_10
from tests.corpus import rawtar
from tests.corpus.rawtar import archive, gnu_long, header

S: Final = 1_000_000_000
"""Nanoseconds of a second."""

SEGMENTS: Final[Segments] = [(0, b"start"), (100_000, b"m" * 3000), (5_000_000, b"e")]


def chunked(data: bytes, size: int = 1 << 20) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, size: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    reader = TarReader(chunked(data, size))
    return [(entry, b"".join(reader.pieces())) for entry in reader]


def entries(*members: bytes) -> list[Entry]:
    return [entry for entry, _ in read(archive(*members))]


def only(*members: bytes) -> Entry:
    (entry,) = entries(*members)
    return entry


def refused(*members: bytes, error: type[ImageFSError] = SourceError, says: str = ".") -> None:
    with pytest.raises(error, match=says) as caught:
        read(archive(*members))
    assert "near byte" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def sample() -> bytes:
    return archive(
        rawtar.directory(b"d/"),
        rawtar.file(b"d/a", b"a" * 1000),
        rawtar.member(b"d/" + b"n" * 200, data=b"b" * 512, records={b"mtime": b"1.5"}),
        pax_sparse_10(b"s", 5_000_001, SEGMENTS),
        old_sparse(b"t", 5_000_001, SEGMENTS),
        rawtar.symlink(b"l", b"d/a"),
        gnu_long(b"g" * 150),
        header(b"g", magic=GNU),
    )


def plain(data: bytes, size: int) -> list[tuple[bytes, Kind, int, bytes]]:
    return [(entry.path, entry.kind, entry.mtime_ns, content) for entry, content in read(data, size)]
