"""What members are called: names that are normalised, joined, long, or refused, and those that are whiteouts."""

import pytest

from imagefs.convert.entry import Kind
from imagefs.errors import LimitError
from tests.convert.tarmaker import GNU, patched, pax_sparse_01
from tests.convert.tarreads import entries, only, refused
from tests.corpus import rawtar
from tests.corpus.rawtar import gnu_long, header, pax


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"./a", b"a"),
        (b"/a", b"a"),
        (b"//a", b"a"),
        (b"././/a//b/./c/.", b"a/b/c"),
        (b"a/", b"a"),
        (b"a//", b"a"),
        (b".a", b".a"),
        (b"..a", b"..a"),
        (b"a/...", b"a/..."),
        (b"a/.b/..c", b"a/.b/..c"),
        (b"\xff\xfe/\n\\ ", b"\xff\xfe/\n\\ "),
    ],
)
def test_names_are_normalised(name: bytes, path: bytes) -> None:
    assert only(header(name, b"5")).path == path


@pytest.mark.parametrize("name", [b".", b"./", b"/", b"", b"./."])
def test_the_root(name: bytes) -> None:
    assert only(header(name, b"5")).path == b""
    refused(header(name, b"2", link=b"x"), says="root")
    refused(header(name, b"0"), says="root")


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/../b", b"a/..", b"/../a", b"./..", b"a/./../../b", b"../../../../etc/passwd"])
def test_no_name_goes_up(name: bytes) -> None:
    refused(header(name), says="'\\.\\.' part")
    refused(header(b"h", b"1", link=name), says="'\\.\\.' part")
    refused(gnu_long(name), header(b"x"), says="'\\.\\.' part")
    refused(pax({b"path": name}), header(b"x"), says="'\\.\\.' part")
    refused(pax_sparse_01(name, 1, [(0, b"x")]), says="'\\.\\.' part")


def test_the_ustar_prefix() -> None:
    assert only(header(b"name", prefix=b"some/dir")).path == b"some/dir/name"
    assert only(header(b"n" * 100, prefix=b"p" * 155)).path == b"p" * 155 + b"/" + b"n" * 100


def test_star_has_times_after_a_shorter_prefix() -> None:
    block = patched(header(b"name", prefix=b"d" * 131), 345 + 131, b"00000000017\x0000000000017\0")
    assert only(patched(block, 508, b"tar\0")).path == b"d" * 131 + b"/name"


def test_gnu_times_are_no_prefix() -> None:
    assert only(patched(header(b"name", magic=GNU), 345, b"00000000017\x0000000000017\0")).path == b"name"


def test_a_prefix_under_the_gnu_magic_by_old_go() -> None:
    assert only(header(b"name", magic=GNU, prefix=b"var/lib/some/dir")).path == b"var/lib/some/dir/name"


def test_gnu_long_names() -> None:
    name, link = b"d/" * 1000 + b"n" * 255, b"t" * 200
    entry = only(gnu_long(name), gnu_long(link, b"K"), header(b"cut", b"2", link=b"cut", magic=GNU))
    assert (entry.path, entry.link) == (name, link)


def test_long_names_belong_to_one_entry() -> None:
    first, second = entries(gnu_long(b"long"), header(b"a"), header(b"b"))
    assert (first.path, second.path) == (b"long", b"b")
    first, second = entries(pax({b"path": b"long", b"mtime": b"1.5"}), header(b"a"), header(b"b", mtime=0))
    assert (first.path, second.path, second.mtime_ns) == (b"long", b"b", 0)


def test_limits_of_names() -> None:
    longest = b"/".join([b"x" * 255] * 16)
    assert len(longest) == 4095
    assert only(pax({b"path": longest}), header(b"x")).path == longest
    deepest = b"/".join([b"y"] * 2047) + b"/zz"
    assert len(deepest) == 4096
    assert only(pax({b"path": b"./" + deepest + b"/"}), header(b"x")).path == deepest
    refused(pax({b"path": deepest + b"z"}), header(b"x"), says="longer than 4096")
    refused(pax({b"path": b"a/" + b"x" * 256}), header(b"x"), says="part longer than 255")
    refused(gnu_long(b"/".join([b"p"] * 100_000)), header(b"x"), says="longer than 4096")
    refused(gnu_long(b"x" * (2 << 20)), header(b"x"), error=LimitError, says="long name")
    refused(pax({b"path": b"a\0b"}), header(b"x"), says="NUL")


def test_targets_of_symbolic_links() -> None:
    assert only(pax({b"linkpath": b"../" * 1365}), header(b"x", b"2", link=b"y")).link == b"../" * 1365
    for target in (b"", b"x" * 4096, b"a\0b"):
        refused(pax({b"linkpath": target}), header(b"x", b"2"), says="target")


# -- whiteouts ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        (b".wh.a", Kind.WHITEOUT, b"a"),
        (b"./d/.wh.a", Kind.WHITEOUT, b"d/a"),
        (b"d/.wh..a", Kind.WHITEOUT, b"d/.a"),
        (b"d/.wh....", Kind.WHITEOUT, b"d/..."),
        (b"d/.wh..wh..opq", Kind.OPAQUE, b"d"),
        (b".wh..wh..opq", Kind.OPAQUE, b""),
        (b"d/x.wh.a", Kind.FILE, b"d/x.wh.a"),
        (b"x.wh.d/a", Kind.FILE, b"x.wh.d/a"),
    ],
)
def test_whiteouts(name: bytes, kind: Kind, path: bytes) -> None:
    entry = only(header(name))
    assert (entry.kind, entry.path) == (kind, path)


def test_a_whiteout_of_any_type_and_with_data() -> None:
    first, second, third = entries(header(b".wh.a", b"3"), rawtar.file(b".wh.b", b"data"), rawtar.file(b"c"))
    assert [first.kind, second.kind, third.kind] == [Kind.WHITEOUT, Kind.WHITEOUT, Kind.FILE]


@pytest.mark.parametrize("name", [b".wh..wh.aufs", b".wh..wh.plnk/12.34", b"d/.wh..wh.orph/x", b"d/.wh..wh."])
def test_bookkeeping_of_aufs_is_left_out(name: bytes) -> None:
    assert [entry.path for entry in entries(rawtar.file(name, b"data"), rawtar.file(b"x"))] == [b"x"]


@pytest.mark.parametrize("name", [b".wh.", b"d/.wh.", b"d/.wh..", b"d/.wh..."])
def test_whiteouts_that_name_nothing(name: bytes) -> None:
    refused(header(name), says="names nothing")


def test_nothing_lives_below_a_whiteout() -> None:
    refused(header(b"d/.wh.a/b"), says="below a whiteout")
