"""Listings of layers: what was written is read again, and what was not written by us is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import IntegrityError, UnsupportedError
from imagefs.format.listing import FILE, KINDS, LISTING_MAGIC, Row, build_listing, read_listing
from imagefs.format.tree import INLINE_MAX

_U32 = st.integers(0, 2**32 - 1)
_SECONDS = st.integers(-(2**63), 2**63 - 1)
_XATTRS = st.none() | st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=300), max_size=3)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    kind = draw(st.integers(0, len(KINDS) - 1))
    path = draw(st.binary(max_size=300))
    if KINDS[kind] in {"whiteout", "opaque"}:
        return Row(path, kind)
    size, content = 0, b""
    if kind == FILE:
        size = draw(st.integers(0, INLINE_MAX) | st.integers(0, 2**63 - 1))
        length = size if size <= INLINE_MAX else 32
        content = draw(st.binary(min_size=length, max_size=length))
    owner = draw(_U32), draw(_U32)
    time = draw(_SECONDS), draw(st.integers(0, 999_999_999))
    link = b"" if kind == FILE else draw(st.binary(max_size=300))
    return Row(path, kind, draw(st.integers(0, 0o7777)), *owner, *time, size, content, link, 0, draw(_XATTRS))


SAMPLE = [
    Row(b"", KINDS.index("dir"), 0o755),
    Row(b"f", FILE, 0o4755, 1, 2**32 - 2, -1, 5, 100, b"d" * 32, b"", 0, {b"user.a": b"b"}),
    Row(b"small", FILE, 0o644, size=3, content=b"abc"),
    Row(b"l", KINDS.index("symlink"), link=b"/somewhere"),
    Row(b"null", KINDS.index("char"), 0o666, rdev=0x103),
    Row(b"gone", KINDS.index("whiteout")),
]


@given(st.lists(rows(), max_size=20))
def test_what_was_written_is_read(given_rows: list[Row]) -> None:
    assert list(read_listing(build_listing(given_rows))) == given_rows


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_any_number_of_rows(count: int) -> None:
    made = [Row(b"%d" % number, FILE) for number in range(count)]
    assert list(read_listing(build_listing(iter(made)))) == made


def test_golden() -> None:
    """A change here is a change of the format: what older versions wrote is then worth nothing."""
    assert digest_of(build_listing(SAMPLE)).hex() == "4756919c1f8b5ea38404111294161fee2f7d9ed411ae396ae146fd76ed30b901"


@given(st.data())
@settings(max_examples=300)
def test_damage_is_refused_or_gives_sound_rows(data: st.DataObject) -> None:
    listing = bytearray(build_listing(SAMPLE))
    if data.draw(st.booleans()):
        del listing[data.draw(st.integers(0, len(listing) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if listing:
            listing[data.draw(st.integers(0, len(listing) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = list(read_listing(bytes(listing)))
    except (IntegrityError, UnsupportedError):
        return
    assert list(read_listing(build_listing(found))) == found


def test_every_cut_but_between_runs_shows() -> None:
    listing = build_listing(SAMPLE)
    for end in range(len(listing)):
        if end == 16:
            assert list(read_listing(listing[:end])) == []
            continue
        with pytest.raises(IntegrityError):
            list(read_listing(listing[:end]))


@pytest.mark.parametrize("head", [(99).to_bytes(4, "little") + bytes(4), (1).to_bytes(4, "little") + b"\1\0\0\0"])
def test_other_versions_and_flags_are_refused(head: bytes) -> None:
    with pytest.raises(UnsupportedError):
        list(read_listing(LISTING_MAGIC + head))


@pytest.mark.parametrize(
    "row",
    [
        Row(b"a", FILE, size=3),
        Row(b"a", FILE, size=3, content=b"abcd"),
        Row(b"a", FILE, size=100, content=b"d" * 31),
        Row(b"a", FILE, size=65, content=b"d" * 64),
        Row(b"a", FILE, link=b"b"),
        Row(b"a", KINDS.index("dir"), content=b"x"),
        Row(b"a", KINDS.index("symlink"), size=1, link=b"b"),
        Row(b"a", KINDS.index("whiteout"), 0o644),
        Row(b"a", KINDS.index("opaque"), link=b"b"),
        Row(b"a", len(KINDS)),
        Row(b"a", FILE, 0o10000),
        Row(b"a", FILE, uid=2**32),
        Row(b"a", FILE, nanoseconds=10**9),
        Row(b"a", FILE, size=-1),
        Row(b"a" * 70_000, FILE),
    ],
)
def test_rows_that_no_layer_has_are_refused(row: Row) -> None:
    with pytest.raises(IntegrityError):
        list(read_listing(build_listing([row])))
