"""What is damaged in a store is not there for a writer who does not trust it, and is written again; what is right is left alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.digest import digest_of
from imagefs.errors import ConflictError, NotFoundError, StoreError
from imagefs.format.manifest import BlobName, Manifest, Platform, encode
from imagefs.store.base import ObjectStore, blob_key, manifest_key, pack_key
from imagefs.store.checked import CheckedStore
from imagefs.store.images import get_blob, get_manifest, put_blob, put_manifest
from imagefs.store.opening import open_store
from tests.fuse.images import noise
from tests.store.faulty import Fault, FaultyStore, flipped, truncated

RAW = noise(300_000, 1)
PACK = noise(5_000_000, 2)
MANIFEST = Manifest(
    tree=BlobName("a" * 64, 1),
    objects=BlobName("b" * 64, 1),
    platform=Platform("linux", "amd64", None),
    config={},
    annotations={},
    layers=[],
    files=0,
    bytes=0,
    frame_size=4096,
)
KEYS = {
    "pack": pack_key(digest_of(PACK).hex()),
    "blob": blob_key(digest_of(RAW).hex()),
    "manifest": manifest_key(digest_of(encode(MANIFEST)).hex()),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "truncated": truncated,
    "empty": lambda _: b"",
    "longer": lambda data: data + b"x",
    "other": lambda _: b"other",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(f"file://{tmp_path}/store", create=True)
    yield opened
    opened.close()


def put(store: ObjectStore, kind: str) -> bool:
    """Put what the tests are about, as writers do."""
    if kind == "pack":
        # In pieces, as packs are.
        return store.put_if_absent(KEYS["pack"], [PACK[:100], memoryview(PACK)[100:]])
    return bool((put_blob(store, RAW) if kind == "blob" else put_manifest(store, MANIFEST))[1])


def is_whole(store: ObjectStore, kind: str) -> bool:
    if kind == "pack":
        return store.get(KEYS["pack"]) == PACK
    return get_blob(store, digest_of(RAW).hex(), len(RAW)) == RAW if kind == "blob" else get_manifest(store, KEYS[kind][10:]) == MANIFEST


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KEYS)
def test_what_is_damaged_is_not_there_and_is_written_again(store: ObjectStore, tmp_path: Path, kind: str, damage: str) -> None:
    put(store, kind)
    path = tmp_path / "store" / KEYS[kind]
    path.chmod(0o644)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert not put(store, kind)
    checked = CheckedStore(store)
    with pytest.raises(NotFoundError, match="damaged"):
        checked.head(KEYS[kind])
    assert put(checked, kind)
    assert checked.healed == [KEYS[kind]]
    assert is_whole(store, kind)
    assert checked.head(KEYS[kind]) == store.head(KEYS[kind])
    assert not put(checked, kind)


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_right_is_left_alone_and_read_once(store: ObjectStore, kind: str) -> None:
    put(store, kind)
    watched = FaultyStore(store)
    checked = CheckedStore(watched)
    assert checked.head(KEYS[kind]) == store.head(KEYS[kind])
    seen = len(watched.calls)
    assert not put(checked, kind)
    assert {op for op, _ in watched.calls[seen:]} <= {"head", "put_if_absent"}
    assert "replace" not in {op for op, _ in watched.calls}
    assert checked.healed == []


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_missing_is_put(store: ObjectStore, kind: str) -> None:
    checked = CheckedStore(store)
    with pytest.raises(NotFoundError):
        checked.head(KEYS[kind])
    assert put(checked, kind)
    assert is_whole(store, kind)
    assert checked.healed == []


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_damaged_on_its_way_once_is_not_written_over(store: ObjectStore, kind: str) -> None:
    put(store, kind)
    watched = FaultyStore(store, [Fault("get", KEYS[kind], times=1, change=flipped)])
    assert not put(CheckedStore(watched), kind)
    assert "replace" not in {op for op, _ in watched.calls}


def test_one_that_is_healed_by_another_meanwhile_is_left_to_it(store: ObjectStore, tmp_path: Path) -> None:
    put(store, "pack")
    path = tmp_path / "store" / KEYS["pack"]
    path.write_bytes(flipped(PACK))
    watched = FaultyStore(store, [Fault("replace", times=1, before=lambda: path.write_bytes(PACK))])
    checked = CheckedStore(watched)
    assert not put(checked, "pack")
    assert checked.healed == []
    # One that nobody can write is not tried for ever.
    path.write_bytes(flipped(PACK))
    with pytest.raises(ConflictError, match="all the time"):
        put(CheckedStore(FaultyStore(store, [Fault("replace", error=ConflictError("faster"))])), "pack")


def test_one_that_is_collected_meanwhile_is_put(store: ObjectStore, tmp_path: Path) -> None:
    put(store, "pack")
    path = tmp_path / "store" / KEYS["pack"]
    path.write_bytes(flipped(PACK))
    watched = FaultyStore(store, [Fault("get_versioned", times=1, before=path.unlink)])
    assert put(CheckedStore(watched), "pack")
    assert is_whole(store, "pack")


def test_a_store_that_is_away_is_not_damaged(store: ObjectStore) -> None:
    put(store, "pack")
    checked = CheckedStore(FaultyStore(store, [Fault("get", error=StoreError("away"))]))
    for call in (lambda: checked.head(KEYS["pack"]), lambda: put(checked, "pack")):
        with pytest.raises(StoreError, match="away"):
            call()


def test_all_else_is_the_stores(store: ObjectStore) -> None:
    checked = CheckedStore(store)
    assert checked.url == store.url
    version = checked.replace("refs/a/1", b"one", version=None)
    assert checked.get_versioned("refs/a/1") == (b"one", version)
    assert not checked.put_if_absent("refs/a/1", b"two")
    assert checked.get("refs/a/1") == b"one"
    assert checked.head("refs/a/1").size == 3
    assert [info.key for info in checked.list("refs/")] == ["refs/a/1"]
    assert checked.delete("refs/a/1")
    checked.close()
    assert list(store.list("refs/")) == []
