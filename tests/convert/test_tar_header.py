"""The fields of a tar header: every spelling in, one meaning out, and what is none refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagefs.convert.entry import Kind
from imagefs.convert.tar_header import checksum_fits, number
from imagefs.errors import SourceError, UnsupportedError
from tests.convert.tarmaker import wide
from tests.convert.tarreads import S, entries, only, read, refused
from tests.corpus import rawtar
from tests.corpus.rawtar import archive, base256, header, pax


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
