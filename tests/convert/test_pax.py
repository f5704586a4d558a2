"""Pax records: what they override, exact times, extended attributes, and what is malformed or too much."""

import pytest

from imagefs.convert.pax import PAX_MAX, time_ns
from imagefs.errors import LimitError, SourceError
from tests.convert.tarreads import S, entries, only, read, refused
from tests.corpus.rawtar import archive, base256, gnu_long, header, pad, pax


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
