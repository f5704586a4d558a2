"""Profiles for tests: any, and those of a made-up program on many hosts."""

import random
import struct

from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.format.accesses import EVERY_START, GRAIN, Access
from imagefs.format.profile import Key, Profile

MANIFEST = digest_of(b"manifest").hex()
OTHER = digest_of(b"another manifest").hex()
OBJECTS = sorted(digest_of(b"object %d" % number) for number in range(6))

keys = st.builds(
    Key.of,
    st.lists(st.text(max_size=9), max_size=3),
    st.sampled_from(["", "train", "é"]) | st.text(max_size=5),
    st.sampled_from(["", "H200"]),
)


@st.composite
def accesses(draw: st.DrawFn, *, least_share: int = 1, far: bool = False) -> list[Access]:
    """Any accesses: some of few objects, so that they meet, and with neighbours that touch."""
    found = []
    for name in draw(st.sets(st.sampled_from(OBJECTS))):
        position = draw(st.integers(0, (1 << 32) - 200)) if far else 0
        for _ in range(draw(st.integers(1, 4))):
            start = position + draw(st.integers(0, 3))
            position = start + draw(st.integers(1, 4))
            at = draw(st.integers(0, 5) | st.integers(0, (1 << 32) - 1))
            share = draw(st.integers(least_share, EVERY_START) | st.just(EVERY_START))
            found.append(Access(name, start * GRAIN, position * GRAIN, at, share))
    return found


@st.composite
def profiles(draw: st.DrawFn, *, least_share: int = 1, far: bool = False, most_starts: int = 64) -> Profile:
    """Any profile."""
    manifest = draw(st.sampled_from([MANIFEST, OTHER]))
    return Profile(manifest, draw(keys), draw(st.integers(1, most_starts)), draw(accesses(least_share=least_share, far=far)))


def program(number: int, count: int, objects: int, *, jitter: random.Random | None = None, manifest: str = MANIFEST) -> Profile:
    """What a start of program ``number`` touches: ``count`` ranges. With ``jitter``, one of many starts that are alike, not the same."""
    chance = random.Random(number)
    names = [digest_of(b"%d of program %d" % (index, number)) for index in range(objects)]
    ends = [0] * objects
    found = []
    at = 0.0
    for index in range(count):
        owner = index if index < objects else chance.randrange(objects)
        start = ends[owner] + chance.randrange(3)
        ends[owner] = start + chance.randrange(1, 5)
        at += chance.expovariate(0.5)
        found.append(Access(names[owner], start * GRAIN, ends[owner] * GRAIN, int(at), EVERY_START))
    if jitter is not None:
        found = [access._replace(at=max(0, access.at + jitter.randrange(-50, 50))) for access in found if jitter.random() < 0.97]
    return Profile(manifest, Key.of(["program", str(number)]), 1, found)


def resealed(data: bytes) -> bytes:
    """Return a profile that was changed with the digest that goes with the change: what only a forger does."""
    return data[:-32] + digest_of(data[:-32])


FIELDS = "magic", "version", "flags", "manifest", "starts", "objects", "accesses", "entry", "label", "gpu", "unused", "size", "reserved"
HEADER = struct.Struct("<8sII32sIIIHHHHII")


def with_header(data: bytes, **changes: int) -> bytes:
    """Return a profile with other numbers in its header, and the digest that goes with them."""
    values = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True)) | changes
    return resealed(HEADER.pack(*values.values()) + data[HEADER.size :])
