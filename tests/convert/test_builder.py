"""The content builder: what it stores can be read back, and what it stores depends on nothing but the content."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zstandard

from imagefs.convert.builder import Built, ContentBuilder
from imagefs.convert.entry import Content
from imagefs.convert.known import KnownPacks
from imagefs.convert.pieces import FRAME_SIZE, OWN_PACKS_FROM
from imagefs.digest import digest_of
from imagefs.errors import StoreFullError
from imagefs.format.manifest import BlobName, Layer, Manifest, Platform
from imagefs.format.objectmap import HOLE, build_object_map
from imagefs.format.pack import decode_frame
from imagefs.format.tree import INLINE_MAX
from imagefs.store.base import ByteRange, ObjectStore, pack_key
from imagefs.store.images import put_blob, put_manifest
from imagefs.store.opening import open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


def build(store: ObjectStore, contents: Sequence[bytes], *, jobs: int = 2, known: KnownPacks | None = None) -> tuple[list[Content], Built]:
    with ContentBuilder(store, known or KnownPacks(store), jobs=jobs, level=3) as builder:
        added = [builder.add(len(data), _pieces(data)) for data in contents]
        builder.flush()
        return added, builder.built(content.object for content in added if content.object is not None)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Cut as no frame is cut, so that frames have to be put together."""
    for start in range(0, len(data), 100_003):
        yield data[start : start + 100_003]


def read_back(store: ObjectStore, built: Built, digest: bytes) -> bytes:
    """Read an object by the rows of the map alone."""
    frames = [(pack[0], entry) for pack in built.packs for entry in pack[3]]
    (found,) = (item for item in built.objects if item.digest == digest)
    data = b""
    for extent in found.extents:
        assert extent.offset == len(data)
        if extent.frame == HOLE:
            data += bytes(extent.length)
            continue
        pack, entry = frames[extent.frame]
        stored = store.get(pack_key(pack.hex()), ByteRange(entry.offset, entry.offset + entry.stored))
        frame = decode_frame(stored, entry.codec, entry.length, entry.digest, zstandard.ZstdDecompressor())
        data += frame[extent.frame_offset : extent.frame_offset + extent.length]
    assert len(data) == found.size
    return data


def sample(seed: int, count: int) -> list[bytes]:
    """Contents of every size class: inlined, small, just at the limits, of several frames, with packs of their own."""
    rng = random.Random(seed)
    sizes = [
        0,
        1,
        INLINE_MAX,
        INLINE_MAX + 1,
        FRAME_SIZE - 1,
        FRAME_SIZE,
        FRAME_SIZE + 1,
        OWN_PACKS_FROM - 1,
        OWN_PACKS_FROM,
        20 * OWN_PACKS_FROM + 7,
    ]
    sizes += [rng.randrange(100, 40_000) for _ in range(count)]
    return [rng.randbytes(size // 2) + bytes(size % 7) + b"text " * (size // 10 + 1) for size in sizes]


def test_everything_is_read_back(store: ObjectStore) -> None:
    contents = sample(1, 300)
    added, built = build(store, contents)
    for data, content in zip(contents, added, strict=True):
        assert content.size == len(data)
        if len(data) <= INLINE_MAX:
            assert content.inline == data
            assert content.object is None
        else:
            assert content.object == digest_of(data)
            assert read_back(store, built, content.object) == data


def test_the_number_of_jobs_changes_nothing(tmp_path: Path) -> None:
    contents = sample(2, 400)
    maps = []
    for jobs in (1, 2, 5):
        store = open_store(str(tmp_path / f"store{jobs}"), create=True)
        _, built = build(store, contents, jobs=jobs)
        maps.append(build_object_map(built.objects, built.packs))
        store.close()
    assert maps[0] == maps[1] == maps[2]


def test_a_few_changed_files_change_a_few_packs(store: ObjectStore) -> None:
    rng = random.Random(3)
    contents = [rng.randbytes(rng.randrange(100, 30_000)) for _ in range(4000)]
    _, before = build(store, contents)
    contents[1000] = rng.randbytes(17_000)
    contents.insert(2500, rng.randbytes(999))
    del contents[3000]
    _, after = build(store, contents)
    old = {pack[0] for pack in before.packs}
    changed = sum(pack[2] for pack in after.packs if pack[0] not in old)
    assert len(before.packs) > 20
    assert 0 < changed <= 0.35 * sum(pack[2] for pack in after.packs)


def test_known_packs_change_the_work_and_not_the_result(tmp_path: Path, store: ObjectStore) -> None:
    contents = sample(4, 500)
    _, built = build(store, contents)
    path = tmp_path / "map"
    path.write_bytes(build_object_map(built.objects, built.packs))
    known = KnownPacks(store)
    known.add(path)
    with ContentBuilder(store, known, jobs=2, level=3) as builder:
        wanted = [builder.add(len(data), [data]).object for data in contents]
        builder.flush()
        again = builder.built(name for name in wanted if name is not None)
    assert build_object_map(again.objects, again.packs) == build_object_map(built.objects, built.packs)
    assert builder.tally.packs_new == 0
    assert builder.tally.compress_seconds == 0
    # A pack that the map knows but the store has lost is made again.
    store.delete(pack_key(built.packs[0][0].hex()))
    with ContentBuilder(store, known, jobs=2, level=3) as builder:
        for data in contents:
            builder.add(len(data), [data])
        builder.flush()
    assert builder.tally.packs_new == 1


def test_holes_and_zeros_are_the_same_object_without_frames(store: ObjectStore) -> None:
    size = 40 * FRAME_SIZE + 5
    data = bytearray(size)
    data[3 * FRAME_SIZE + 10 : 3 * FRAME_SIZE + 14] = b"data"
    with ContentBuilder(store, KnownPacks(store), jobs=1, level=3) as builder:
        plain = builder.add(size, _pieces(bytes(data)))
        sparse = builder.add(size, [b"da", b"ta"], [(3 * FRAME_SIZE + 10, 4), (size, 0)])
        assert plain.object == sparse.object == digest_of(data)
        builder.flush()
        built = builder.built([digest_of(data)])
    assert [(e.offset, e.length, e.frame == HOLE) for e in built.objects[0].extents] == [
        (0, 3 * FRAME_SIZE, True),
        (3 * FRAME_SIZE, FRAME_SIZE, False),
        (4 * FRAME_SIZE, size - 4 * FRAME_SIZE, True),
    ]
    assert read_back(store, built, digest_of(data)) == data


def test_equal_objects_are_kept_once(store: ObjectStore) -> None:
    large = random.Random(5).randbytes(3 * OWN_PACKS_FROM)
    added, built = build(store, [large, b"s" * 1000, large, b"s" * 1000])
    assert len(built.objects) == 2
    assert len(built.packs) == 2
    assert added[0] == added[2]
    assert read_back(store, built, digest_of(large)) == large


def test_what_the_tree_does_not_name_is_left_out(store: ObjectStore) -> None:
    large = random.Random(6).randbytes(2 * OWN_PACKS_FROM)
    small = b"s" * 1000
    with ContentBuilder(store, KnownPacks(store), jobs=1, level=3) as builder:
        builder.add(len(large), [large])
        builder.add(len(small), [small])
        builder.flush()
        built = builder.built([digest_of(small)])
    assert [item.digest for item in built.objects] == [digest_of(small)]
    assert len(built.packs) == 1


def test_a_full_store_stops_the_conversion(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise StoreFullError("no room")

    monkeypatch.setattr(store, "put_if_absent", full)
    large = random.Random(7).randbytes(OWN_PACKS_FROM)
    with ContentBuilder(store, KnownPacks(store), jobs=2, level=3) as builder, pytest.raises(StoreFullError):
        # The first packs are on their way when they fail: a later call says so, and this one does not go on for ever.
        _add_for_ever(builder, large)


def _add_for_ever(builder: ContentBuilder, data: bytes) -> None:
    for _ in range(10_000):
        builder.add(len(data), [data])


def test_a_diff_id_that_was_checked_is_known_for_that_blob_alone(tmp_path: Path, store: ObjectStore) -> None:
    source = tmp_path / "source"
    source.mkdir()
    layers = [Layer("type", "sha256:" + "1" * 64, "sha256:" + "2" * 64)]
    blob = put_blob(store, build_object_map([], []))[0]
    name = BlobName(blob, len(build_object_map([], [])))
    manifest = Manifest(
        tree=name,
        objects=name,
        platform=Platform("linux", "amd64"),
        config={},
        annotations={},
        layers=layers,
        files=0,
        bytes=0,
        frame_size=1,
    )
    put_manifest(store, manifest)
    known = KnownPacks.load(store, source)
    assert known.checked("sha256:" + "1" * 64, "sha256:" + "2" * 64)
    assert not known.checked("sha256:" + "1" * 64, "sha256:" + "3" * 64)
    assert not known.checked("sha256:" + "2" * 64, "sha256:" + "2" * 64)
    assert not known.checked("sha256:" + "1" * 64, None)
