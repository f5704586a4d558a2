"""The tar reader: every format in, one meaning out, and everything else refused with a place."""

import contextlib
import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagefs.convert.entry import Entry, Kind
from imagefs.convert.pax import PAX_MAX, time_ns
from imagefs.convert.tar import TarReader
from imagefs.convert.tar_header import checksum_fits, number
from imagefs.errors import ImageFSError, LimitError, SourceError, UnsupportedError
from tests.convert.tarmaker import (
    BLOCK,
    GNU,
    SPARSE_FORMATS,
    Segments,
    map_of,
    old_sparse,
    patched,
    pax_sparse_00,
    pax_sparse_01,
    pax_sparse_10,
    stored,
    wide,
)
from tests.corpus import rawtar
from tests.corpus.rawtar import archive, base256, gnu_long, header, pad, pax, pax_record

S = 1_000_000_000


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


# -- fields -------------------------------------------------------------------------------------------------------------------------------


def test_each_field_arrives() -> None:
    entry = only(rawtar.file(b"usr/bin/x", b"abc", mode=0o4755, uid=1000, gid=70_000, mtime=12))
    assert (entry.path, entry.kind, entry.mode, entry.uid, entry.gid) == (b"usr/bin/x", Kind.FILE, 0o4755, 1000, 70_000)
    assert (entry.mtime_ns, entry.size, entry.link, entry.xattrs, entry.sparse, entry.content) == (12 * S, 3, b"", None, None, None)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [(b"0", Kind.FILE), (b"\0", Kind.FILE), (b"7", Kind.FILE), (b"5", Kind.DIR), (b"6", Kind.FIFO), (b"3", Kind.CHAR), (b"4", Kind.BLOCK)],
)
def test_types(flag: bytes, kind: Kind) -> None:
    entry = only(header(b"x", flag, major=8, minor=300))
    assert entry.kind is kind
    assert entry.rdev == ((8 << 8 | 300 & 0xFF | (300 & ~0xFF) << 12) if kind in (Kind.CHAR, Kind.BLOCK) else 0)


def test_a_v7_directory_is_told_by_its_slash() -> None:
    assert only(header(b"d/", b"\0", magic=bytes(8))).kind is Kind.DIR
    assert only(header(b"d/", b"0", magic=bytes(8))).kind is Kind.FILE


def test_v7_links_and_devices() -> None:
    link, device = entries(header(b"l", b"2", link=b"to", magic=bytes(8)), header(b"d", b"3", magic=bytes(8), major=1, minor=3))
    assert (link.kind, link.link) == (Kind.SYMLINK, b"to")
    assert device.rdev == 0


def test_mode_bits_beyond_permissions_are_dropped() -> None:
    assert only(header(b"x", mode=0o100644 | 0o7000)).mode == 0o7644


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_only_regular_files_have_data(flag: bytes) -> None:
    """Go ignores the size of the others, and so do the engines that are made with it."""
    first, second = entries(header(b"x", flag, size=5000, link=b"y"), rawtar.file(b"z"))
    assert first.size == 0
    assert second.path == b"z"


@pytest.mark.parametrize("flag", [b"V", b"M", b"D", b"X", b"A", b"8", b"\xff"])
def test_vendor_types_are_refused(flag: bytes) -> None:
    refused(header(b"x", flag), error=UnsupportedError, says="unknown type")


@pytest.mark.parametrize("value", [0, 1, 0o777, 8**11 - 1, 8**11, 1 << 62, -1, -(1 << 40)])
def test_numbers(value: int) -> None:
    assert number(wide(value)) == value


@pytest.mark.parametrize("field", [b"       \0", b"\0" * 8, b""])
def test_an_empty_number_is_zero(field: bytes) -> None:
    assert number(field) == 0


@pytest.mark.parametrize("field", [b"  644 \0\0", b"0000644 ", b"0000644\0", b"00000644", b"\x000644\0\0\0"])
def test_octal_in_every_padding(field: bytes) -> None:
    assert number(field) == 0o644


@pytest.mark.parametrize("field", [b"0000_44\0", b"0o00644\0", b"-000644\0", b"+000644\0", b"0000649\0", b"64 4\0\0\0\0", b"0x1\0\0\0\0\0"])
def test_what_is_no_number(field: bytes) -> None:
    with pytest.raises(SourceError, match="no number"):
        number(field)


def test_checksums_signed_and_unsigned() -> None:
    block = header(b"caf\xe9\xff\xff")
    assert checksum_fits(block, block[148:156])
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 32
    assert only(block[:148] + b"%06o\0 " % signed + block[156:]).path == b"caf\xe9\xff\xff"


@given(st.binary(min_size=512, max_size=512))
@example(b"\xff" * 512)
def test_the_fast_checksum_is_the_sum(block: bytes) -> None:
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    assert checksum_fits(block, b"%o" % total)
    assert checksum_fits(block, b"%o" % (total + 1)) == (
        sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256 == total + 1
    )


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    good = header(b"x", mtime=0)
    for at in (*range(148), *range(156, len(good))):  # the checksum itself can be spelled in several ways
        for bit in range(8):
            bad = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            with pytest.raises(SourceError):
                read(archive(bad))


@pytest.mark.parametrize(("field", "value"), [("uid", (1 << 32) - 1), ("gid", 1 << 32), ("uid", -1), ("gid", 1 << 60)])
def test_owners_are_not_truncated(field: str, value: int) -> None:
    raw = base256(value, 8) if value < 1 << 55 else b"\x80" + b"\x7f" * 7
    refused(header(b"x", uid=raw) if field == "uid" else header(b"x", gid=raw), says="owner")
    refused(pax({field.encode(): b"%d" % value}), header(b"x"), says="owner|uid")


def test_the_largest_owner() -> None:
    entry = only(header(b"x", uid=(1 << 32) - 2, gid=(1 << 32) - 2))
    assert (entry.uid, entry.gid) == ((1 << 32) - 2, (1 << 32) - 2)


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 80])
def test_sizes_that_are_none(size: int) -> None:
    refused(header(b"x", size=base256(size, 12)), says="size")
    refused(pax({b"size": b"%d" % size}), header(b"x"), says="size")


def test_a_header_of_eight_exabytes_ends_early() -> None:
    refused(header(b"x", size=(1 << 63) - 1), says="ends inside a file's data")


def test_devices_that_linux_cannot_hold() -> None:
    refused(header(b"x", b"3", major=0x1000), says="device")
    refused(header(b"x", b"4", minor=0x100000), says="device")


def test_times_before_the_epoch_and_past_64_bits() -> None:
    assert only(header(b"x", mtime=-5)).mtime_ns == -5 * S
    refused(header(b"x", mtime=base256(1 << 70, 12)), says="time")


# -- names --------------------------------------------------------------------------------------------------------------------------------


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


# -- pax ----------------------------------------------------------------------------------------------------------------------------------


def test_pax_records_override_the_header() -> None:
    records = {
        b"path": b"p",
        b"uid": b"4000000000",
        b"gid": b"3",
        b"mtime": b"1.25",
        b"size": b"3",
        b"hdrcharset": b"BINARY",
        b"comment": b"?",
    }
    ((entry, data),) = read(archive(pax(records), header(b"x", size=0), pad(b"abc")))
    assert (entry.path, entry.uid, entry.gid, entry.mtime_ns, entry.size, data) == (b"p", 4_000_000_000, 3, S + S // 4, 3, b"abc")


def test_an_empty_value_leaves_the_header() -> None:
    entry = only(pax({b"path": b"", b"uid": b"", b"mtime": b""}), header(b"x", uid=7, mtime=9))
    assert (entry.path, entry.uid, entry.mtime_ns) == (b"x", 7, 9 * S)


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (b"0", 0),
        (b"1.", S),
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"1700000000.1234567899", 1_700_000_000_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-0.000000001", -1),
        (b"-0.5", -S // 2),
        (b"9223372036854775807.999999999", ((1 << 63) - 1) * S + 999_999_999),
    ],
)
def test_times_are_exact(value: bytes, nanoseconds: int) -> None:
    assert time_ns(value) == nanoseconds
    assert only(pax({b"mtime": value}), header(b"x")).mtime_ns == nanoseconds


@pytest.mark.parametrize("value", [b".5", b"1e9", b"+1", b"1_0", b"--1", b"1.5.5", b" 1", b"nan", b"1.-5", b"9" * 20, b"1\n", b"\xd9\xa1"])
def test_what_is_no_time(value: bytes) -> None:
    refused(pax({b"mtime": value}), header(b"x"), says="mtime")


def test_global_records_hold_until_changed() -> None:
    first, second, third = entries(
        pax({b"mtime": b"5", b"uid": b"9", b"comment": b"commit id"}, b"g"),
        header(b"a"),
        pax({b"mtime": b"6"}),
        header(b"b"),
        pax({b"uid": b""}, b"g"),
        header(b"c", uid=1),
    )
    assert [(e.mtime_ns // S, e.uid) for e in (first, second, third)] == [(5, 9), (6, 9), (5, 1)]


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size", b"GNU.sparse.map"])
def test_a_global_record_cannot_be_one_files(key: bytes) -> None:
    refused(pax({key: b"1"}, b"g"), header(b"x"), says="global")


@pytest.mark.parametrize(
    "body",
    [
        b"6 a=b",
        b"7 a=b\n",
        b"5 a=b\n",
        b"99 a=b\n",
        b"a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6  ab\n",
        b"5 =b\n",
        b"6 a=b\n7",
        b"6 a=b\n\0\0",
        b"00000000000006 a=b\n",
        b" 6 a=b\n",
        b"2 \n",
        b"3 =\n",
        b"1 ",
    ],
)
def test_malformed_records(body: bytes) -> None:
    refused(header(b"pax", b"x", size=len(body)) + pad(body), header(b"x"), says="pax record")


def test_pax_headers_are_bounded_before_they_are_read() -> None:
    refused(header(b"pax", b"x", size=PAX_MAX + 1), error=LimitError, says="pax header")
    refused(header(b"pax", b"x", size=base256(-1, 12)), error=LimitError)
    refused(header(b"pax", b"x", size=PAX_MAX), says="ends inside a pax header")


def test_an_extension_header_needs_an_entry() -> None:
    refused(header(b"a"), pax({b"path": b"b"}), says="no entry follows")
    with pytest.raises(SourceError, match="no entry follows"):
        read(gnu_long(b"b"))


def test_xattrs() -> None:
    value = bytes(range(256)) + b"\n12 a=b\n"
    entry = only(
        pax(
            {
                b"SCHILY.xattr.security.capability": value,
                b"SCHILY.xattr.user.empty": b"",
                b"SCHILY.xattr.trusted.overlay.opaque": b"y",
                b"SCHILY.xattr.system.posix_acl_access": b"\2\0\0\0",
                b"LIBARCHIVE.xattr.user.with%20space%3D": b"AAE",
                b"LIBARCHIVE.xattr.user.empty": b"AAAA",
                b"SCHILY.xattr.com.apple.quarantine": b"x",
                b"LIBARCHIVE.xattr.com.apple.provenance": b"AA",
                b"SCHILY.acl.access": b"user::rw-,user:lisa:rwx:502",
            }
        ),
        header(b"x"),
    )
    assert entry.xattrs == {
        b"security.capability": value,
        b"user.empty": b"",
        b"trusted.overlay.opaque": b"y",
        b"system.posix_acl_access": b"\2\0\0\0",
        b"user.with space=": b"\0\1",
    }


@pytest.mark.parametrize(
    "records",
    [
        {b"SCHILY.xattr.user.": b"x"},
        {b"SCHILY.xattr.user." + b"n" * 251: b"x"},
        {b"SCHILY.xattr.user.a\0b": b"x"},
        {b"SCHILY.xattr.user.a": bytes(65537)},
        {b"LIBARCHIVE.xattr.user.a": b"!!!!"},
        {b"LIBARCHIVE.xattr.user.a": b"A"},
    ],
)
def test_xattrs_that_linux_cannot_hold(records: dict[bytes, bytes]) -> None:
    refused(pax(records), header(b"x"), says="extended attribute")


def test_the_largest_xattr() -> None:
    entry = only(pax({b"SCHILY.xattr.user." + b"n" * 250: bytes(65536)}), header(b"x"))
    assert entry.xattrs == {b"user." + b"n" * 250: bytes(65536)}


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


# -- sparse files -------------------------------------------------------------------------------------------------------------------------

SEGMENTS: Segments = [(0, b"start"), (100_000, b"m" * 3000), (5_000_000, b"e")]

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


# -- the stream ---------------------------------------------------------------------------------------------------------------------------


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


# -- other programs' archives -------------------------------------------------------------------------------------------------------------

NAME = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120), min_size=1, max_size=3).map(
    "/".join
)


def same_name(name: str) -> bytes | None:
    parts = [part for part in name.encode().split(b"/") if part != b"."]
    return None if b".." in parts or any(len(part) > 255 or part.startswith(b".wh.") for part in parts) else b"/".join(parts)


@given(
    st.lists(
        st.tuples(
            NAME,
            st.sampled_from([b"0", b"5", b"2"]),
            st.integers(0, 0o7777),
            st.integers(0, 2**32 - 2),
            st.integers(-(2**33), 2**34),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 3000),
)
@settings(max_examples=60)
def test_what_pythons_tarfile_writes(files: list[tuple[str, bytes, int, int, int, bytes]], form: int, chunk: int) -> None:
    buffer = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, mode, owner, mtime, data in files:
            path = same_name(name)
            if not path:
                continue
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.mtime = kind, mode, owner, mtime
            info.linkname = "t" * (owner % 300 + 1) if kind == b"2" else ""
            content = data if kind == b"0" else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            expected.append((path, mode, owner, mtime * S, info.linkname.encode(), content))
    found = [(e.path, e.mode, e.uid, e.mtime_ns, e.link, content) for e, content in read(buffer.getvalue(), chunk)]
    assert found == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=oldgnu", "--sparse"],
        ["--format=pax", "--sparse", "--sparse-version=0.0"],
        ["--format=pax", "--sparse", "--sparse-version=0.1"],
        ["--format=pax", "--sparse", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=ustar"],
    ],
)
def test_what_gnu_tar_writes(tmp_path: Path, options: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    generator = random.Random(5)
    with (tree / "holes").open("wb") as file:
        for _ in range(40):
            file.seek(generator.randrange(1, 20) * 65536, 1)
            file.write(generator.randbytes(generator.randrange(1, 70_000)))
        file.truncate(file.tell() + 1_000_000)
    (tree / "dir" / ("n" * 80)).write_bytes(b"plain")
    (tree / "link").symlink_to("dir/x")
    (tree / "hard").hardlink_to(tree / "holes")
    if "pax" in options[0] or "gnu" in options[0]:
        (tree / "dir" / ("l" * 200)).write_bytes(b"long")
    done = subprocess.run(["tar", *options, "-C", str(tree), "-cf", "-", "."], capture_output=True, check=True, timeout=60)
    found = {entry.path: (entry, content) for entry, content in read(done.stdout, 10_000)}
    paths = {path.relative_to(tree).as_posix().encode() for path in tree.rglob("*")} | {b""}
    assert set(found) == paths
    files = [(path, pair) for path, pair in found.items() if pair[0].kind is Kind.FILE]
    for path, (entry, content) in files:
        real = (tree / path.decode()).read_bytes()
        assert spread(entry, content) == real
        if "pax" in options[0]:
            assert entry.mtime_ns == (tree / path.decode()).stat().st_mtime_ns
    sparse = [entry for _, (entry, _) in files if entry.sparse is not None]
    assert len(sparse) == ("--sparse" in options)
    assert sum(entry.kind is Kind.HARDLINK for entry, _ in found.values()) == 1


def spread(entry: Entry, content: bytes) -> bytes:
    """Return a file's bytes with its holes as zeros."""
    if entry.sparse is None:
        return content
    whole = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        whole[offset : offset + length] = content[at : at + length]
        at += length
    assert at == len(content)
    return bytes(whole)
