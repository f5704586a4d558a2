"""Profiles as bytes: one spelling, read back exactly; and whatever else it may be, it is refused as what it is."""

import struct
import time
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format.accesses import EVERY_START, GRAIN, MAX_ACCESSES, NO_ACCESSES, Access, Accesses
from imagefs.format.profile import MAX_ENTRY, MAX_LABEL, MAX_PROFILE, Key, Profile, decode, encode
from tests.format.profiles import HEADER, MANIFEST, OBJECTS, keys, profiles, program, resealed, with_header

A, B = OBJECTS[:2]
SMALL = Profile(
    MANIFEST,
    Key.of(["python", "-c", "import torch"], "train", "NVIDIA H200"),
    3,
    [
        Access(B, 0, GRAIN, 0, EVERY_START),
        Access(A, 4 * GRAIN, 6 * GRAIN, 7, 40_000),
        Access(A, 0, GRAIN, 7, EVERY_START),
        Access(A, GRAIN, 4 * GRAIN, 1200, 5000),
    ],
)
GOLDEN = "f6471889ea140a8bf3a31a81144b7493934ae98f90299f8eb4a739216b64ecc7"
COLUMNS = HEADER.size + len("python -c import torchtrainNVIDIA H200") + 2 * 32
"""Where the columns of SMALL begin: two counts, then four starts, lengths, times and shares."""


@settings(deadline=None)
@given(profiles(far=True))
def test_what_is_written_is_read_back(profile: Profile) -> None:
    data = encode(profile)
    read = decode(data)
    assert read == profile
    assert hash(read) == hash(profile)
    assert encode(read) == data
    assert decode(memoryview(bytearray(data))) == profile


@settings(deadline=None)
@given(profiles(), st.randoms())
def test_the_order_in_which_accesses_are_given_makes_no_difference(profile: Profile, chance: object) -> None:
    rows = list(profile.accesses)
    chance.shuffle(rows)  # type: ignore[attr-defined]
    assert encode(Profile(profile.manifest, profile.key, profile.starts, tuple(rows))) == encode(profile)


def test_accesses_come_in_the_order_of_need() -> None:
    found = SMALL.accesses
    assert [(access.at, access.object, access.start // GRAIN) for access in found] == [(0, B, 0), (7, A, 0), (7, A, 4), (1200, A, 1)]
    assert list(found) == sorted(found, key=lambda access: (access.at, access.object, access.start))
    assert [found[index] for index in range(4)] == list(found) == [found[index - 4] for index in range(4)]
    assert found[1:3] == tuple(found)[1:3]
    assert found == tuple(found)
    assert tuple(found) == found
    assert found != tuple(found)[1:]
    with pytest.raises(IndexError):
        found[4]
    assert repr(found) == "<4 accesses of 2 objects>"
    assert SMALL.columns.total_bytes == 7 * GRAIN


def test_the_golden_profile() -> None:
    """The bytes of format 1, here and on every machine."""
    data = encode(SMALL)
    assert data[:76] == HEADER.pack(b"IMFSPROF", 1, 0, bytes.fromhex(MANIFEST), 3, 2, 4, 22, 5, 11, 0, 274, 0)
    assert data[76:114] == b"python -c import torchtrainNVIDIA H200"
    assert data[114:178] == A + B
    assert data[178:186] == struct.pack("<2I", 3, 1)
    assert data[186:202] == struct.pack("<4I", 0, 1, 4, 0)
    assert data[202:218] == struct.pack("<4I", 1, 3, 2, 1)
    assert data[218:234] == struct.pack("<4I", 7, 1200, 7, 0)
    assert data[234:242] == struct.pack("<4H", 65535, 5000, 40_000, 65535)
    assert data[242:] == digest_of(data[:242])
    assert digest_of(data).hex() == GOLDEN


def test_a_start_that_touched_nothing_is_a_profile() -> None:
    nothing = Profile(MANIFEST, Key(), 1, ())
    assert decode(encode(nothing)) == nothing
    assert nothing.accesses == NO_ACCESSES == ()


def test_a_profile_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SMALL.starts = 4  # type: ignore[misc]


# -- what cannot be -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [Access(A[:-1], 0, GRAIN, 0, 1)],
        [Access(A, 1, GRAIN, 0, 1)],
        [Access(A, 0, GRAIN + 1, 0, 1)],
        [Access(A, 0, 0, 0, 1)],
        [Access(A, GRAIN, 0, 0, 1)],
        [Access(A, -GRAIN, GRAIN, 0, 1)],
        [Access(A, 0, GRAIN << 32, 0, 1)],
        [Access(A, 0, GRAIN, -1, 1)],
        [Access(A, 0, GRAIN, 1 << 32, 1)],
        [Access(A, 0, GRAIN, 0, 0)],
        [Access(A, 0, GRAIN, 0, 65536)],
        [Access(A, 0, 2 * GRAIN, 0, 1), Access(A, GRAIN, 3 * GRAIN, 5, 1)],
        [Access(A, 0, GRAIN, 0, 1), Access(A, 0, GRAIN, 0, 1)],
        [Access(A, 0, 9 * GRAIN, 0, 1), Access(A, 2 * GRAIN, 3 * GRAIN, 5, 1), Access(B, 0, GRAIN, 0, 1)],
    ],
)
def test_accesses_that_cannot_be_are_not_made(rows: list[Access]) -> None:
    with pytest.raises(ValueError, match="object"):
        Profile(MANIFEST, Key(), 1, rows)


def test_more_accesses_than_a_profile_holds_are_not_made() -> None:
    rows = [Access(A, number * GRAIN, (number + 1) * GRAIN, 0, 1) for number in range(MAX_ACCESSES + 1)]
    with pytest.raises(LimitError):
        Profile(MANIFEST, Key(), 1, rows)
    assert len(Profile(MANIFEST, Key(), 1, rows[1:]).accesses) == MAX_ACCESSES


@pytest.mark.parametrize(
    ("manifest", "key", "starts"),
    [
        ("x" * 64, Key(), 1),
        (MANIFEST.upper(), Key(), 1),
        (MANIFEST, Key(), 0),
        (MANIFEST, Key(), 65),
        (MANIFEST, Key(entry="a\nb"), 1),
        (MANIFEST, Key(label="\udc80"), 1),
        (MANIFEST, Key(gpu="\x9b31m"), 1),
        (MANIFEST, Key(entry="e" * 513), 1),
        (MANIFEST, Key(label="é" * 65), 1),
    ],
)
def test_profiles_that_cannot_be_are_not_made(manifest: str, key: Key, starts: int) -> None:
    with pytest.raises(ValueError, match="not a p"):
        Profile(manifest, key, starts, ())


@given(st.lists(st.text()), st.text(), st.text())
def test_a_key_is_made_of_anything(argv: list[str], label: str, gpu: str) -> None:
    key = Key.of(argv, label, gpu)
    assert Profile(MANIFEST, key, 1, ()).key == key == Key.of([key.entry], key.label, key.gpu)


def test_a_key_is_cut_between_characters() -> None:
    key = Key.of(["python", "x.py", "é" * 400], "é" * 100, "\x1b[31m")
    assert len(key.entry.encode()) == MAX_ENTRY
    assert key.entry.startswith("python x.py éé")
    assert len(key.label.encode()) == MAX_LABEL
    assert key.gpu == "\ufffd[31m"
    assert Key.of(["a\n  b", "c"]).entry == "a b c"


@given(keys, keys)
def test_a_key_matches_by_its_label_exactly_and_by_what_else_is_asked_for(key: Key, other: Key) -> None:
    assert key.matches(key)
    assert key.matches(Key(label=key.label))
    assert key.matches(other) == (
        key.label == other.label and (not other.entry or other.entry == key.entry) and (not other.gpu or other.gpu == key.gpu)
    )


# -- what others may have made of the bytes -----------------------------------------------------------------------------------------------


def test_a_profile_that_was_cut_anywhere_or_grew_is_refused() -> None:
    data = encode(SMALL)
    for size in range(len(data)):
        for wrong in (data[:size], resealed(data[:size]) if size >= 32 else b""):
            with pytest.raises(IntegrityError):
                decode(wrong)
    for wrong in (data + b"\0", resealed(data + bytes(32)), b""):
        with pytest.raises(IntegrityError):
            decode(wrong)


def test_every_flipped_bit_is_refused() -> None:
    data = bytearray(encode(SMALL))
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            with pytest.raises(ImageFSError):
                decode(bytes(data))
            data[at] ^= 1 << bit
    assert decode(bytes(data)) == SMALL


@settings(max_examples=200, deadline=None)
@given(profiles(far=True), st.data())
def test_what_a_forger_changes_is_refused_or_a_profile(profile: Profile, data: st.DataObject) -> None:
    """With the digest put right. What passes is in its one spelling: nothing that is read is anything but a profile."""
    raw = bytearray(encode(profile))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    forged = resealed(bytes(raw))
    try:
        read = decode(forged)
    except ImageFSError:
        return
    assert encode(read) == forged
    assert read.accesses == Accesses.of(list(read.accesses))


@given(st.binary(max_size=500))
def test_anything_else_is_no_profile(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(data)
    with pytest.raises(ImageFSError):
        decode(b"IMFSPROF" + data)


@pytest.mark.parametrize("changes", [{"version": 0}, {"version": 2}, {"flags": 1}, {"unused": 1}, {"reserved": 1}])
def test_an_older_or_newer_version_is_told_apart_from_damage(changes: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError):
        decode(with_header(encode(SMALL), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"accesses": 5},
        {"accesses": 3},
        {"accesses": (1 << 32) - 1},
        {"accesses": MAX_ACCESSES + 1, "size": (1 << 32) - 1},
        {"objects": 0},
        {"objects": 3},
        {"objects": (1 << 32) - 1, "accesses": (1 << 32) - 1, "size": (1 << 32) - 1},
        {"starts": 0},
        {"starts": 65},
        {"entry": 23},
        {"entry": 65535, "label": 65535, "gpu": 65535},
        {"size": 0},
        {"size": 273},
        {"entry": 23, "label": 4, "gpu": 10, "size": 273},
    ],
)
def test_counts_that_do_not_fill_the_profile_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(IntegrityError):
        decode(with_header(encode(SMALL), **changes))


def test_what_is_too_large_is_refused_unread() -> None:
    began = time.perf_counter()
    with pytest.raises(LimitError):
        decode(bytes(MAX_PROFILE + 1))
    assert time.perf_counter() - began < 1


TOP = (1 << 32) - 1


@pytest.mark.parametrize(
    "offset, code, values",
    [
        (0, "<2I", (4, 0)),
        (0, "<2I", (2, 1)),
        (0, "<2I", (2, 3)),
        (0, "<2I", (TOP, 5)),
        (8, "<I", (1,)),
        (8, "<4I", (1, 0, 4, 0)),
        (8, "<4I", (0, 1, 3, 0)),
        (8, "<4I", (0, 1, TOP, 0)),
        (8, "<4I", (0, 1, 4, TOP)),
        (24, "<I", (0,)),
        (24, "<I", (2,)),
        (24, "<I", (TOP,)),
        (20, "<I12xI", (1, TOP)),
        (56, "<H", (0,)),
    ],
)
def test_ranges_that_overlap_overflow_or_belong_to_nobody_are_refused(offset: int, code: str, values: tuple[int, ...]) -> None:
    data = bytearray(encode(SMALL))
    assert decode(bytes(data)) == SMALL
    struct.pack_into(code, data, COLUMNS + offset, *values)
    with pytest.raises(IntegrityError):
        decode(resealed(bytes(data)))


@pytest.mark.parametrize("table", [B + A, A + A, B + B])
def test_objects_that_are_not_in_order_are_refused(table: bytes) -> None:
    data = encode(SMALL)
    with pytest.raises(IntegrityError):
        decode(resealed(data[: COLUMNS - 64] + table + data[COLUMNS:]))


@pytest.mark.parametrize("text", [b"python\xff", b"python\x1b", b"python\n", b"python\0", b"\xed\xa0\x80 abc", b"\xc2\x9b abcd"])
def test_a_key_that_is_not_to_be_shown_is_refused(text: bytes) -> None:
    data = encode(SMALL)
    at = HEADER.size
    with pytest.raises(IntegrityError):
        decode(resealed(data[:at] + text + data[at + len(text) :]))


def test_texts_that_are_too_long_are_refused() -> None:
    for name in ("entry", "label", "gpu"):
        profile = Profile(MANIFEST, Key(), 1, ())
        data = encode(profile)
        size = MAX_ENTRY + 1
        longer = data[: HEADER.size] + b"x" * size + data[HEADER.size :]
        with pytest.raises(IntegrityError):
            decode(with_header(longer, **{name: size}, size=len(longer)))


# -- how long it takes --------------------------------------------------------------------------------------------------------------------


def test_a_full_profile_is_read_in_little_time() -> None:
    """65,536 accesses of as many objects: tens of milliseconds. A tuple for each would take ten times that; the bound is a loose one."""
    full = program(1, MAX_ACCESSES, MAX_ACCESSES)
    data = encode(full)
    assert len(data) <= MAX_PROFILE
    assert decode(data) == full

    def seconds() -> float:
        began = time.process_time()
        decode(data)
        return time.process_time() - began

    assert min(seconds() for _ in range(3)) < 0.5
