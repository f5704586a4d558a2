"""The index on the host: whole, verified each time, replaced when it is damaged."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.cache.image import open_image
from imagefs.cache.layout import ObjectRecord
from imagefs.errors import AccessError, IntegrityError, NotFoundError
from imagefs.store.base import blob_key
from imagefs.store.opening import open_store
from tests.fuse.images import Maker, noise


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    made = Maker(store)
    made.file("dir/a", noise(100_000))
    yield made
    store.close()


def test_the_index_moves_once(maker: Maker, tmp_path: Path) -> None:
    name = maker.publish()
    first = open_image(maker.store, tmp_path / "cache", name)
    assert first.moved > 0
    assert first.tree.lookup(first.tree.root, b"dir") is not None
    again = open_image(maker.store, tmp_path / "cache", name)
    assert again.moved == 0
    assert sorted(path.name for path in (tmp_path / "cache/index").iterdir()) == sorted(
        [name, again.manifest.tree.digest, again.manifest.objects.digest]
    )
    first.release_pages()
    assert first.tree.lookup(first.tree.root, b"dir") is not None


def test_a_map_can_be_read_as_long_as_somebody_refers_to_it(maker: Maker, tmp_path: Path) -> None:
    image = open_image(maker.store, tmp_path / "cache", maker.publish())
    row = image.objects.object(0)
    record = ObjectRecord(image, row)
    del image
    gc.collect()
    assert record.lookup.objects.find(row.digest) == row


@pytest.mark.parametrize("which", ["manifest", "tree", "objects"])
@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_damaged_file_is_replaced(maker: Maker, tmp_path: Path, which: str, damage: str) -> None:
    name = maker.publish()
    image = open_image(maker.store, tmp_path / "cache", name)
    digests = {"manifest": name, "tree": image.manifest.tree.digest, "objects": image.manifest.objects.digest}
    path = tmp_path / "cache/index" / digests[which]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes({"flipped": data[:-1] + bytes([data[-1] ^ 1]), "short": data[:-1], "empty": b""}[damage])
    again = open_image(maker.store, tmp_path / "cache", name)
    assert again.moved > 0
    assert path.read_bytes() == data


def test_a_damaged_blob_is_refused_and_leaves_nothing(maker: Maker, tmp_path: Path) -> None:
    name = maker.publish()
    image = open_image(maker.store, tmp_path / "cache", name)
    tree = image.manifest.tree.digest
    blob = tmp_path / "store" / blob_key(tree)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 0xFF
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(IntegrityError):
        open_image(maker.store, tmp_path / "other", name)
    assert tree not in {path.name for path in (tmp_path / "other/index").iterdir()}
    blob.unlink()
    with pytest.raises(NotFoundError):
        open_image(maker.store, tmp_path / "other", name)
    assert not [path for path in (tmp_path / "other/index").iterdir() if path.name.startswith(".")]


def test_a_cache_that_is_no_directory_is_refused(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AccessError):
        open_image(maker.store, tmp_path / "file", maker.publish())
