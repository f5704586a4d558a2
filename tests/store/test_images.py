"""Blobs and manifests: nothing comes out that was not verified, and nothing is left of what failed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from imagefs.digest import digest_of
from imagefs.errors import ImageFSError, IntegrityError, NotFoundError
from imagefs.format.manifest import BlobName, Manifest, Platform
from imagefs.store.base import ObjectStore, blob_key
from imagefs.store.images import fetch_blob_to, get_blob, get_manifest, put_blob, put_manifest
from imagefs.store.opening import open_store
from tests.store.faulty import Fault, FaultyStore, flipped, truncated

RAW = random.Random(1).randbytes(3_000_000) + bytes(6_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    opened = open_store(str(tmp_path / "store"), create=True)
    yield opened
    opened.close()


@pytest.mark.parametrize("raw", [b"x", RAW])
def test_a_blob_is_got_as_it_was_put(store: ObjectStore, tmp_path: Path, raw: bytes) -> None:
    name, added = put_blob(store, raw)
    assert name == digest_of(raw).hex()
    assert 0 < added < len(raw) + 100
    assert put_blob(store, raw) == (name, 0)
    assert get_blob(store, name, len(raw)) == raw
    assert fetch_blob_to(store, name, len(raw), tmp_path / "file") == added
    assert (tmp_path / "file").read_bytes() == raw


@pytest.mark.parametrize("change", [flipped, truncated, lambda data: data + b"more", lambda _: b"", lambda _: b"junk"])
def test_a_damaged_blob_is_told_and_leaves_nothing(store: ObjectStore, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    name, _ = put_blob(store, RAW)
    path = tmp_path / "store" / blob_key(name)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(change(data))
    with pytest.raises(ImageFSError):
        get_blob(store, name, len(RAW))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ImageFSError):
        fetch_blob_to(store, name, len(RAW), target / "file")
    assert list(target.iterdir()) == []


def test_a_blob_longer_than_it_should_be_is_not_inflated(store: ObjectStore, tmp_path: Path) -> None:
    bomb = zstandard.compress(bytes(1 << 30), 1)
    name = "0" * 64
    store.put_if_absent(blob_key(name), bomb)
    with pytest.raises(IntegrityError, match="longer"):
        get_blob(store, name, 1000)


def test_a_store_that_lies_once_is_caught(store: ObjectStore) -> None:
    name, _ = put_blob(store, RAW)
    faulty = FaultyStore(store, [Fault("get", "blobs/*", times=1, change=flipped)])
    with pytest.raises(IntegrityError):
        get_blob(faulty, name, len(RAW))
    assert get_blob(faulty, name, len(RAW)) == RAW


def test_manifests(store: ObjectStore, tmp_path: Path) -> None:
    blob = BlobName(put_blob(store, RAW)[0], len(RAW))
    manifest = Manifest(
        tree=blob, objects=blob, platform=Platform("linux", "amd64"), config={}, annotations={}, layers=[], files=1, bytes=2, frame_size=3
    )
    name, added = put_manifest(store, manifest)
    assert added
    assert get_manifest(store, name) == manifest
    with pytest.raises(NotFoundError):
        get_manifest(store, "0" * 64)
    path = tmp_path / "store" / "manifests" / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'"files":1', b'"files":2'))
    with pytest.raises(IntegrityError):
        get_manifest(store, name)
