"""Images and profiles to optimize, made straight from the format writers, and a reader that knows the object map alone."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard
from hypothesis import strategies as st

from imagefs.digest import digest_of
from imagefs.format.accesses import EVERY_START, GRAIN
from imagefs.format.objectmap import HOLE, ObjectMap
from imagefs.format.pack import decode_frame
from imagefs.format.profile import Access, Key, Profile
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from imagefs.store.images import get_blob, get_manifest
from imagefs.store.refs import resolve
from tests.fuse.images import Maker, noise

FRAME: Final = 2 * GRAIN
"""Bytes of a frame: small, so that a few hundred kilobytes have many."""

OTHER: Final = digest_of(b"what no image has")


@dataclass(frozen=True)
class Made:
    """An image in a store: its manifest's digest, and its contents by object."""

    store: ObjectStore
    name: str
    contents: dict[bytes, bytes]


def make(
    store: ObjectStore, groups: Sequence[Sequence[int]], large: Sequence[tuple[int, bool]], *, ref: str = "test", seed: int = 0
) -> Made:
    """Make an image of ``groups`` of small files of these sizes, a frame each, and large ones, with a hole in the middle or none."""
    maker = Maker(store, FRAME)
    rng = random.Random(seed)
    contents: dict[bytes, bytes] = {}
    for number, sizes in enumerate(groups):
        files = {f"small/{number}/{index}": noise(size, rng.getrandbits(60)) for index, size in enumerate(sizes)}
        maker.shared(files)
        contents |= {digest_of(data): data for data in files.values()}
    for number, (size, hole) in enumerate(large):
        data = noise(size, rng.getrandbits(60))
        span = (FRAME, 2 * FRAME) if hole and size > 3 * FRAME else None
        if span:
            data = data[: span[0]] + bytes(FRAME) + data[span[1] :]
        maker.file(f"large/{number}", data, hole=span)
        contents[digest_of(data)] = data
    return Made(store, maker.publish(ref), contents)


def profile(accesses: Iterable[Access], *, manifest: str = "0" * 64, starts: int = 4) -> Profile:
    return Profile(manifest, Key(), starts, list(accesses))


def whole(contents: Iterable[bytes], *, share: int = EVERY_START, step: int = 5) -> list[Access]:
    """Touch all of each object, one after the other."""
    return [Access(digest_of(data), 0, -(-len(data) // GRAIN) * GRAIN, at * step, share) for at, data in enumerate(contents)]


@st.composite
def images(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[int, bool]]]:
    """Sizes for :func:`make`."""
    small = st.lists(st.integers(65, 20_000), min_size=2, max_size=5)
    large = st.tuples(st.integers(FRAME + 1, 5 * FRAME), st.booleans())
    return draw(st.lists(small, min_size=1, max_size=4)), draw(st.lists(large, max_size=3))


@st.composite
def profiles(draw: st.DrawFn, contents: Sequence[bytes]) -> Profile:
    """Any accesses: of this image's objects or of none, within them or beyond, by many starts or few."""
    accesses = []
    for name in draw(st.lists(st.sampled_from([*map(digest_of, contents), OTHER]), unique=True, max_size=12)):
        position = 0
        for _ in range(draw(st.integers(1, 3))):
            start = position + draw(st.integers(0, 3))
            position = start + draw(st.integers(1, 4))
            share = draw(st.sampled_from([1, 5000, 16383, 16384, 30_000, 49_151, 49_152, EVERY_START]))
            accesses.append(Access(name, start * GRAIN, position * GRAIN, draw(st.integers(0, 50)), share))
    return profile(accesses)


def map_of(store: ObjectStore, ref: str) -> ObjectMap:
    manifest = get_manifest(store, resolve(store, ref))
    return ObjectMap(get_blob(store, manifest.objects.digest, manifest.objects.size))


def read_object(store: ObjectStore, objects: ObjectMap, digest: bytes) -> bytes:
    row = objects.find(digest)
    assert row is not None
    data = b""
    for extent in objects.extents(row, 0, row.size):
        if extent.frame == HOLE:
            data += bytes(extent.length)
            continue
        frame = objects.frame(extent.frame)
        key = pack_key(objects.pack(frame.pack).digest.hex())
        stored = store.get(key, ByteRange(frame.offset, frame.offset + frame.stored))
        content = decode_frame(stored, frame.codec, frame.length, frame.digest, zstandard.ZstdDecompressor())
        data += content[extent.frame_offset : extent.frame_offset + extent.length]
    return data


Spot = tuple[bytes, int, int] | None


def spots(objects: ObjectMap) -> dict[tuple[bytes, int], Spot]:
    """Return where each extent is, by object and offset: pack, the frame's place there, and the offset in its content."""
    found: dict[tuple[bytes, int], Spot] = {}
    for row in objects:
        for extent in objects.extents(row, 0, row.size):
            spot = None
            if extent.frame != HOLE:
                frame = objects.frame(extent.frame)
                spot = objects.pack(frame.pack).digest, frame.offset, extent.frame_offset
            found[row.digest, extent.offset] = spot
    return found
