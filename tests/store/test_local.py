"""The directory store: the common contract, and what only a directory can do wrong."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.errors import AccessError, StoreError, StoreFullError, UnsupportedError, UsageError
from imagefs.store.base import MARKER_KEY, ObjectStore
from imagefs.store.local import LocalStore
from imagefs.store.opening import open_store
from tests.store.conformance import StoreConformance
from tests.store.faulty import FaultyStore


@pytest.fixture
def local(tmp_path: Path) -> Iterator[ObjectStore]:
    store = open_store(f"file://{tmp_path}/store", create=True)
    yield store
    store.close()


class TestLocalStore(StoreConformance):
    @pytest.fixture
    def store(self, local: ObjectStore) -> ObjectStore:
        return local


class TestFaultyStoreWithoutFaults(StoreConformance):
    @pytest.fixture
    def store(self, local: ObjectStore) -> ObjectStore:
        return FaultyStore(local)


def test_nothing_is_left_in_tmp(local: ObjectStore, tmp_path: Path) -> None:
    local.put_if_absent("packs/a", b"x")
    local.put_if_absent("packs/a", b"x")
    local.replace("refs/a/b", b"x", version=None)
    assert [path.name for path in (tmp_path / "store" / "tmp").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EROFS, AccessError),
        (errno.EACCES, AccessError),
        (errno.EIO, StoreError),
    ],
)
def test_what_the_disk_says_becomes_an_error_of_ours(
    local: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        with pytest.raises(expected):
            local.put_if_absent("packs/a", b"content")
    assert list(local.list("packs/")) == []
    assert {path.name for path in (tmp_path / "store" / "tmp").iterdir()} <= {"lock"}
    assert local.put_if_absent("packs/a", b"content")


def test_a_dead_writers_file_is_swept_and_a_living_ones_is_not(local: ObjectStore, tmp_path: Path) -> None:
    tmp = tmp_path / "store" / "tmp"
    tmp.mkdir(exist_ok=True)
    (tmp / "dead").write_bytes(b"half")
    assert isinstance(local, LocalStore)
    with local._temporary(b"living", "packs/x") as living:
        open_store(str(tmp_path / "store"), create=True).close()
        assert Path(living).exists()
        assert not (tmp / "dead").exists()


@pytest.mark.parametrize("make", ["missing", "empty", "file", "other"])
def test_what_is_no_store_is_not_opened(tmp_path: Path, make: str) -> None:
    place = tmp_path / "place"
    if make == "file":
        place.write_text("x")
    elif make != "missing":
        place.mkdir()
    if make == "other":
        (place / "something").write_text("x")
    with pytest.raises(StoreError) as caught:
        open_store(str(place))
    assert caught.value.hint
    if make in {"file", "other"}:
        with pytest.raises(StoreError):
            open_store(str(place), create=True)


@pytest.mark.parametrize(("marker", "expected"), [(b'{"format":2}', UnsupportedError), (b"{", StoreError), (b"x" * 5000, StoreError)])
def test_a_marker_that_is_not_ours(tmp_path: Path, marker: bytes, expected: type[Exception]) -> None:
    open_store(str(tmp_path / "store"), create=True).close()
    (tmp_path / "store" / MARKER_KEY).write_bytes(marker)
    with pytest.raises(expected):
        open_store(str(tmp_path / "store"))


@pytest.mark.parametrize("url", ["", "file://host/dir", "ftp://x/y", "file:/x://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises((UsageError, StoreError)):
        open_store(url)


def test_a_directory_whose_name_is_not_utf8(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/st%FFre", create=True).close()
    assert os.listdir(os.fsencode(tmp_path)) == [b"st\xffre"]  # noqa: PTH208 - as bytes


def test_two_may_make_a_store_at_once(tmp_path: Path) -> None:
    first = open_store(str(tmp_path / "store"), create=True)
    second = open_store(str(tmp_path / "store"), create=True)
    first.put_if_absent("packs/a", b"x")
    assert second.get("packs/a") == b"x"


def test_what_is_written_to_a_private_store_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for name, private in (("private", True), ("plain", False)):
            store = open_store(str(tmp_path / name), create=True, private=private)
            store.put_if_absent("packs/a", b"x")
            store.replace("refs/a/b/c/1", b"y", version=None)
            store.close()
            made = [tmp_path / name, *(tmp_path / name).rglob("*")]
            assert len(made) > 8
            assert [path for path in made if path.name != "lock" and bool(path.stat().st_mode & 0o077) == private] == []
    finally:
        os.umask(before)


def test_what_was_in_a_store_stays_as_it_is_when_it_becomes_private(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"), create=True).close()
    seen = (tmp_path / "store").stat().st_mode
    open_store(str(tmp_path / "store"), create=True, private=True).close()
    assert (tmp_path / "store").stat().st_mode == seen
