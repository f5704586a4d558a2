"""Directory stores that cannot be used, by the command: what is said, with which exit code, and that nothing has changed."""

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagefs.errors import StoreError
from imagefs.store.opening import open_store
from tests.store.saying import ACCESS, FULL, STORE, UNSUPPORTED, USAGE, says, small_source
from tests.system.world import World, detach, require

_LIBC = ctypes.CDLL(None, use_errno=True)
_RDONLY, _REMOUNT, _BIND = 1, 32, 4096


def _mount(source: bytes, target: Path, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    if _LIBC.mount(source, os.fsencode(target), kind, flags, options):
        pytest.fail(os.strerror(ctypes.get_errno()))


def _state(folder: Path) -> dict[str, str]:
    """Return every file below ``folder``, with its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def source(imagefs: World) -> str:
    return small_source(imagefs.root / "source")


def _looped(path: Path) -> None:
    path.symlink_to(path)


def _below_a_file(path: Path) -> None:
    path.parent.write_text("a letter")


def _of_the_future(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "imagefs-store.json").write_text('{"format": 999}\n')


def _of_an_unknown_marker(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "imagefs-store.json").write_text("what is this")


def _of_a_long_marker(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "imagefs-store.json").write_text(" " * 5000)


def _of_somebody_elses(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "letter.txt").write_text("dear store")


@pytest.mark.parametrize(
    ("make", "place", "status", "text"),
    [
        (None, "none", STORE, r"there is no store at .*none\n.*`imagefs convert` makes one"),
        (_looped, "loop", STORE, r"cannot be read: Too many levels of symbolic links\n.*--store"),
        (None, "x" * 300, STORE, r"cannot be read: File name too long\n.*--store"),
        (_below_a_file, "file/store", STORE, r"is a file, not a store\na store is a directory or an S3 prefix"),
        (_of_the_future, "s", UNSUPPORTED, r"has format 999: this version reads format 1\nupdate imagefs"),
        (_of_an_unknown_marker, "s", STORE, r"imagefs-store.json cannot be read: .*\n.*any other store"),
        (_of_a_long_marker, "s", STORE, r"imagefs-store.json is too long\n.*any other store"),
        (_of_somebody_elses, "s", STORE, r"is not a store: it has no imagefs-store.json\na new store wants an empty directory"),
    ],
)
def test_what_is_no_store(*, make: Callable[[Path], None] | None, place: str, status: int, text: str, imagefs: World, source: str) -> None:
    target = imagefs.root / place
    if make is not None:
        make(target)
    imagefs.environment["IMAGEFS_STORE"] = str(target)
    point = imagefs.root / "mnt"
    point.mkdir()
    before = _state(imagefs.root)
    commands = [["images"], ["inspect", "a"], ["tag", "a", "b"], ["rm", "a"], ["mount", "a", str(point)]]
    # What is merely not there is made by a conversion.
    for command in commands if place == "none" else [["convert", source, "a"], *commands]:
        says(imagefs, status, text, *command)
    after = _state(imagefs.root)
    assert {name for name in after if not name.startswith(("cache", "run"))} == {n for n in before if not n.startswith(("cache", "run"))}


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3//bucket/x", r"^--store: s3//bucket/x: .*colon and two slashes\ns3://BUCKET/PREFIX"),
        ("s3;//bucket/x", r"colon and two slashes\ns3://BUCKET/PREFIX"),
        ("s3:/bucket/x", r"colon and two slashes\ns3://BUCKET/PREFIX"),
        ("s3://Bucket/x", r"'Bucket' cannot be a bucket's name\n3 to 63 lower-case"),
        ("s3://host:9000/bucket", r"a bucket, not a server\n.*AWS_ENDPOINT_URL_S3 names the server"),
        ("s3://key:secret@bucket/x", r"a store's URL holds no credentials\nAWS_PROFILE"),
        ("s4://bucket/x", r"no store has the scheme 's4'\nuse file:///DIR or s3://BUCKET/PREFIX"),
        ("fiel:///x", r"no store has the scheme 'fiel'\nuse file:///DIR"),
        ("file//x", r"not a directory store: 'file//x'\nwrite file:///absolute/path"),
        ("file:x", r"not a directory store: 'file:x'\nwrite file:///absolute/path"),
        ("file://x/y", r"not a directory store: 'file://x/y'\nwrite file:///absolute/path"),
    ],
)
def test_a_typo_in_a_url_makes_no_store_elsewhere(url: str, text: str, imagefs: World, source: str) -> None:
    before = {path.name for path in imagefs.root.iterdir()}
    for command in (["convert", source, "a"], ["images"]):
        done = says(imagefs, USAGE, text, *command, "--store", url)
        assert "secret" not in done.out + done.err
    assert {path.name for path in imagefs.root.iterdir()} == before, "a directory of that name"


@pytest.fixture
def read_only(imagefs: World, source: str) -> Iterator[World]:
    """A world with the image ``app``, whose store lies on a file system that is mounted read-only."""
    require("root", "to mount read-only")
    imagefs.convert(source, "app")
    _mount(os.fsencode(imagefs.store), imagefs.store, None, _BIND)
    _mount(b"none", imagefs.store, None, _BIND | _REMOUNT | _RDONLY)
    yield imagefs
    detach(imagefs.store)


def test_a_store_on_a_read_only_file_system(read_only: World, tmp_path: Path) -> None:
    """As root, who may all that the file system allows."""
    before = _state(read_only.store)
    text = r"the store's file system is read-only: \S+ cannot be changed\nimages can be mounted from it"
    for command in (["convert", small_source(tmp_path / "s"), "b"], ["tag", "app", "b"], ["rm", "app"]):
        says(read_only, ACCESS, text, *command)
    assert _state(read_only.store) == before
    assert [image["ref"] for image in read_only.run("images", "--json").json["images"]] == ["app:latest"]
    require("fuse")
    point = read_only.mount("app")
    assert (point / "small").read_text() == "hello\n"
    (found,) = [found for found in read_only.run("doctor", "--json").json["findings"] if found["name"] == "store"]
    assert (found["state"], "read-only: images can be mounted, not converted" in found["detail"]) == ("warn", True)


@pytest.mark.parametrize("inodes", [1, 3])
def test_no_room_for_a_new_store(imagefs: World, source: str, inodes: int) -> None:
    require("root", "to mount a tmpfs")
    full = imagefs.root / "full"
    full.mkdir()
    _mount(b"tmpfs", full, b"tmpfs", 0, b"size=4k,nr_inodes=%d" % inodes)
    try:
        says(imagefs, FULL, r"the store has no room for .*\nfree some space", "convert", source, "a", "--store", full / "store")
        assert [path for path in full.rglob("*") if path.is_file() and path.name != "lock"] == []
    finally:
        detach(full)


def test_a_file_system_that_does_not_answer_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a network file system whose server is gone."""
    listdir = os.listdir

    def stale(path: object = ".") -> list[str]:
        if path == tmp_path:
            raise OSError(116, os.strerror(116))
        return listdir(path)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(StoreError, match="cannot be read: Stale file handle"):
        open_store(str(tmp_path))
