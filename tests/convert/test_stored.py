"""Content that the store has: objects that take their place without it, and content that is read back where a frame needs it."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefs.convert.builder import Built, ContentBuilder
from imagefs.convert.known import KnownPacks
from imagefs.convert.pieces import FRAME_SIZE, OWN_PACKS_FROM
from imagefs.convert.stored import DoubtError, Part, Stored, StoredReader, find_stored, frame_digest
from imagefs.digest import digest_of
from imagefs.errors import DeadlineError, ImageFSError, StoreError
from imagefs.format.objectmap import HOLE, Extent, ObjectMap, build_object_map
from imagefs.format.pack import build_pack
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ObjectStore, pack_key
from imagefs.store.opening import open_store
from tests.store.faulty import Fault, FaultyStore, flipped, truncated

_SIZES = (
    INLINE_MAX + 1,
    FRAME_SIZE - 1,
    FRAME_SIZE,
    FRAME_SIZE + 1,
    OWN_PACKS_FROM - 1,
    OWN_PACKS_FROM,
    OWN_PACKS_FROM + 1,
    3 * OWN_PACKS_FROM + 7,
    18 * OWN_PACKS_FROM,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Every size class, holes at the start, in the middle and at the end, frames of zeros in what has no holes, and many small objects."""
    rng = random.Random(1)
    made = [rng.randbytes(size) for size in _SIZES]
    made += [rng.randbytes(rng.randrange(100, 40_000)) for _ in range(200)]
    made += [rng.randbytes(rng.randrange(300_000, 900_000)) for _ in range(6)]
    zeros = bytes(FRAME_SIZE)
    made += [zeros * 3 + rng.randbytes(FRAME_SIZE * 2 + 5) + zeros * 2 + b"end" + zeros * 4 + bytes(77), zeros * 6, zeros * 2, zeros]
    rng.shuffle(made)
    return made


def build(store: ObjectStore, known: KnownPacks, contents: Sequence[bytes], *, stored: set[int] = frozenset(), jobs: int = 2) -> bytes:  # type: ignore[assignment]
    """Return the object map of ``contents``; those whose numbers are ``stored`` are not given, but taken from the store."""
    finder = known.finder("")
    with ContentBuilder(store, known, jobs=jobs, level=3) as builder:
        added = []
        for number, data in enumerate(contents):
            if number in stored:
                found = finder.find(digest_of(data), len(data))
                assert found is not None
                added.append(builder.add_stored(found))
                assert added[-1].size == len(data)
            else:
                added.append(builder.add(len(data), [data]))
        builder.flush()
        built = builder.built(content.object for content in added if content.object is not None)
    return as_map(built)


def as_map(built: Built) -> bytes:
    return build_object_map(built.objects, built.packs)


def knowing(store: ObjectStore, scratch: Path, *maps: bytes) -> KnownPacks:
    known = KnownPacks(store)
    for object_map in maps:
        path = scratch / digest_of(object_map).hex()
        path.write_bytes(object_map)
        known.add(path)
    return known


@pytest.fixture
def nothing(store: ObjectStore) -> KnownPacks:
    return KnownPacks(store)


def test_all_of_it_stored_in_the_same_order(store: ObjectStore, nothing: KnownPacks, contents: list[bytes], tmp_path: Path) -> None:
    """Not a byte of content is read, and none is compressed."""
    objects = [data for data in contents if len(data) > INLINE_MAX]
    wanted = build(store, nothing, objects)
    faulty = FaultyStore(store, [Fault("get", error=StoreError("not to be read"))])
    known = knowing(faulty, tmp_path, wanted)
    assert build(faulty, known, objects, stored=set(range(len(objects)))) == wanted
    assert not [call for call in faulty.calls if call[0] in {"get", "put_if_absent"}]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_part_of_it_stored_in_any_order(data: st.DataObject, contents: list[bytes]) -> None:
    """Frames that mix what is stored with what is new, and runs that no image has: the result is that of content alone."""
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    share = data.draw(st.sampled_from([0.02, 0.5, 0.9, 1.0]))
    moves = data.draw(st.sampled_from([0, 3, 300]))
    order = list(contents)
    for _ in range(moves):
        order.insert(rng.randrange(len(order)), order.pop(rng.randrange(len(order))))
    order += [rng.randbytes(2000) for _ in range(20)]
    stored = {number for number, one in enumerate(order[: len(contents)]) if rng.random() < share}
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/store", create=True)
        clean = open_store(f"{folder}/clean", create=True)
        known = knowing(store, Path(folder), build(store, KnownPacks(store), contents))
        wanted = build(clean, KnownPacks(clean), order)
        assert build(store, known, order, stored=stored, jobs=data.draw(st.integers(1, 3))) == wanted
        for number in range(ObjectMap(wanted).pack_count):
            key = pack_key(ObjectMap(wanted).pack(number).digest.hex())
            assert store.get(key) == clean.get(key)
        store.close()
        clean.close()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("get", "packs/*", error=StoreError("gone")),
        Fault("get", "packs/*", error=DeadlineError("late")),
        Fault("get", "packs/*", change=flipped),
        Fault("get", "packs/*", change=truncated),
    ],
)
def test_what_cannot_be_read_is_a_doubt(store: ObjectStore, contents: list[bytes], tmp_path: Path, fault: Fault) -> None:
    objects = [data for data in contents if INLINE_MAX < len(data) < FRAME_SIZE]
    faulty = FaultyStore(store, [fault])
    known = knowing(faulty, tmp_path, build(store, KnownPacks(store), objects))
    with pytest.raises(DoubtError):
        build(faulty, known, objects[1:], stored=set(range(len(objects) - 1)))


def test_a_pack_that_is_gone_is_a_doubt(store: ObjectStore, contents: list[bytes], tmp_path: Path) -> None:
    objects = [data for data in contents if len(data) > INLINE_MAX]
    wanted = build(store, KnownPacks(store), objects)
    known = knowing(store, tmp_path, wanted)
    store.delete(pack_key(ObjectMap(wanted).pack(2).digest.hex()))
    with pytest.raises(DoubtError):
        build(store, known, objects, stored=set(range(len(objects))))


# -- maps that others made ----------------------------------------------------------------------------------------------------------------


def one_object(data: bytes, frames: Sequence[bytes], extents: Sequence[Extent], *, names: Sequence[bytes] | None = None) -> ObjectMap:
    """Return a map of one object in one pack of raw frames; ``names`` are lies about their digests."""
    digests = [digest_of(frame) for frame in frames] if names is None else names
    pack = build_pack([(digest, len(frame), 0, frame) for digest, frame in zip(digests, frames, strict=True)])

    class Row:
        digest = digest_of(data)
        size = len(data)

    Row.extents = extents  # type: ignore[attr-defined]
    return ObjectMap(build_object_map([Row()], [(pack.digest, b"k" * 32, pack.size, pack.entries)]))  # type: ignore[list-item]


_LARGE = random.Random(2).randbytes(OWN_PACKS_FROM) + bytes(FRAME_SIZE) + b"end"
_CUT = [_LARGE[at : at + FRAME_SIZE] for at in range(0, OWN_PACKS_FROM, FRAME_SIZE)]


def test_only_what_is_cut_as_today_is_stored() -> None:
    size = len(_LARGE)
    whole = [Extent(number * FRAME_SIZE, FRAME_SIZE, number, 0) for number in range(4)]
    hole = Extent(4 * FRAME_SIZE, FRAME_SIZE, HOLE, 0)
    end = Extent(5 * FRAME_SIZE, 3, 4, 0)
    good = one_object(_LARGE, [*_CUT, b"end"], [*whole, hole, end])
    found = find_stored(good, digest_of(_LARGE), size)
    assert found is not None
    assert found.parts == [*[Stored(good, number, 0, FRAME_SIZE, None) for number in range(4)], FRAME_SIZE, Stored(good, 4, 0, 3, None)]
    assert find_stored(good, digest_of(_LARGE), size - 1) is None
    assert find_stored(good, digest_of(b"other"), size) is None
    half = FRAME_SIZE // 2
    for frames, extents in (
        # Two frames in place of one; a frame that goes past its object's part; a hole that is off; one frame of more than its size.
        (
            [*_CUT[:3], _CUT[3][:half], _CUT[3][half:], b"end"],
            [
                *whole[:3],
                Extent(3 * FRAME_SIZE, half, 3, 0),
                Extent(3 * FRAME_SIZE + half, half, 4, 0),
                hole,
                Extent(5 * FRAME_SIZE, 3, 5, 0),
            ],
        ),
        ([*_CUT, b"and more"], [*whole, hole, end]),
        ([*_CUT, bytes(5) + b"end"], [*whole, Extent(4 * FRAME_SIZE, FRAME_SIZE - 5, HOLE, 0), Extent(5 * FRAME_SIZE - 5, 8, 4, 0)]),
        ([_LARGE[: 4 * FRAME_SIZE], b"end"], [Extent(0, 4 * FRAME_SIZE, 0, 0), hole, Extent(5 * FRAME_SIZE, 3, 1, 0)]),
    ):
        assert find_stored(one_object(_LARGE, frames, extents), digest_of(_LARGE), size) is None


def test_holes_are_for_large_objects_alone() -> None:
    data = _LARGE[:FRAME_SIZE] + bytes(FRAME_SIZE)
    extents = [Extent(0, FRAME_SIZE, 0, 0), Extent(FRAME_SIZE, FRAME_SIZE, HOLE, 0)]
    assert find_stored(one_object(data, [_LARGE[:FRAME_SIZE]], extents), digest_of(data), len(data)) is None
    small = bytes(1000)
    assert find_stored(one_object(small, [b"x"], [Extent(0, 1000, HOLE, 0)]), digest_of(small), 1000) is None


def test_a_frame_is_known_if_it_is_all_of_one_and_in_order() -> None:
    objects = one_object(b"abcdef" * 20, [b"abcdef" * 20], [Extent(0, 120, 0, 0)])
    other = one_object(b"abcdef" * 20, [b"abcdef" * 20], [Extent(0, 120, 0, 0)])
    first, second = Stored(objects, 0, 0, 50, b""), Stored(objects, 0, 50, 70, b"")
    assert frame_digest([first, second]) == digest_of(b"abcdef" * 20)
    elsewhere = Stored(other, 0, 50, 70, b"")
    wrong: list[list[Part]] = [[second, first], [first], [first, b"x" * 70], [b"x" * 50, second], [first, elsewhere], [first, first]]
    for parts in wrong:
        assert frame_digest(parts) is None


def test_an_object_that_is_not_where_the_map_has_it(store: ObjectStore) -> None:
    frame = b"a" * 100 + b"b" * 100
    pack = build_pack([(digest_of(frame), len(frame), 0, frame)])
    store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
    objects = one_object(b"b" * 100, [frame], [Extent(0, 100, 0, 100)])
    reader = StoredReader(store)
    right = Stored(objects, 0, 100, 100, digest_of(b"b" * 100))
    assert reader.read([right]) == {right: b"b" * 100}
    for lie in (Stored(objects, 0, 0, 100, digest_of(b"b" * 100)), Stored(objects, 0, 0, 200, digest_of(b"b" * 200))):
        with pytest.raises(DoubtError):
            reader.read([lie])


def test_the_key_of_a_known_pack_is_not_taken_on_trust(store: ObjectStore, tmp_path: Path) -> None:
    frame = b"evil" * 100
    pack = build_pack([(digest_of(frame), len(frame), 0, frame)])
    store.put_if_absent(pack_key(pack.digest.hex()), pack.parts)
    wanted = digest_of(digest_of(b"good" * 100))
    path = tmp_path / "map"
    path.write_bytes(build_object_map([], [(pack.digest, wanted, pack.size, pack.entries)]))
    known = KnownPacks(store)
    known.add(path)
    assert known.find(wanted) is None


def test_maps_that_do_not_hold_together_know_nothing(store: ObjectStore, tmp_path: Path) -> None:
    """Every bit of a small map, flipped: what is found is what is there, or nothing."""
    data = b"d" * 1000
    good = build(store, KnownPacks(store), [data])
    for place in range(80, len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        try:
            known = knowing(store, tmp_path, bytes(bad))
        except ImageFSError:
            continue
        found = known.finder("").find(digest_of(data), len(data))
        if found is None:
            continue
        with ContentBuilder(store, known, jobs=1, level=3) as builder:
            builder.add_stored(found)
            try:
                builder.flush()
            except DoubtError:
                continue
