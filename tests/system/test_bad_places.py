"""Stores, mountpoints and refs that cannot be used: the exit code of their kind, one clear line, nothing changed."""

import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.corpus import rawtar as t
from tests.corpus.features import ROOT, noise
from tests.corpus.oci import pack_directory, simple
from tests.system.test_bad_input import clear_message
from tests.system.world import World, detach, require, wait_until

_LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
USAGE, UNSUPPORTED, INTEGRITY, NOT_FOUND, STORE, FULL, MOUNT, ACCESS = 2, 4, 5, 6, 7, 8, 10, 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"oci:{simple(tmp_path_factory.mktemp('source') / 'layout', t.archive(ROOT, t.file(b'a', noise(3_000_000))))}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, source: str) -> Iterator[World]:
    """A world with one image, its daemon up."""
    require("fuse")
    made = World(tmp_path_factory.mktemp("places") / "world")
    made.convert(source, "team/app:v1")
    made.mount("team/app:v1", "keeper")
    yield made
    assert made.close() == []


def refused(world: World, status: int | set[int], *arguments: str | Path) -> str:
    """Run a command that has to fail with ``status``; return what it said."""
    done = world.attempt(*arguments, seconds=30)
    assert done.status in ({status} if isinstance(status, int) else status), f"{done.status}: {done.err}"
    clear_message(done.err)
    assert done.out == "" or "error" in json.loads(done.out)
    return done.err


def test_store_missing(imagefs: World) -> None:
    for command in (["images"], ["inspect", "a"], ["tag", "a", "b"], ["rm", "a"]):
        assert str(imagefs.store) in refused(imagefs, {NOT_FOUND, STORE}, *command)
    assert not imagefs.store.exists()


def test_store_missing_mount(imagefs: World) -> None:
    (imagefs.root / "mnt").mkdir()
    assert str(imagefs.store) in refused(imagefs, {NOT_FOUND, STORE}, "mount", "a", imagefs.root / "mnt")
    wait_until(lambda: imagefs.pids() == [], "the end of a daemon that has nothing to serve")


def _not_a_store(path: Path) -> None:
    path.mkdir()
    (path / "letter.txt").write_text("dear store")


def _a_file(path: Path) -> None:
    path.write_text("dear store")


def _of_the_future(path: Path) -> None:
    path.mkdir()
    (path / "imagefs-store.json").write_text('{"format": 999}\n')


def _of_an_unknown_marker(path: Path) -> None:
    path.mkdir()
    (path / "imagefs-store.json").write_text("what is this")


@pytest.mark.parametrize(
    ("make", "status"),
    [(_not_a_store, STORE), (_a_file, STORE), (_of_the_future, UNSUPPORTED), (_of_an_unknown_marker, {STORE, INTEGRITY})],
)
def test_store_is_none_of_ours(make: Callable[[Path], None], status: int | set[int], imagefs: World, source: str) -> None:
    make(imagefs.store)
    before = sorted(imagefs.root.rglob("*"))
    (imagefs.root / "mnt").mkdir()
    for command in (["convert", source, "a"], ["images"], ["mount", "a", str(imagefs.root / "mnt")]):
        refused(imagefs, status, *command)
    assert imagefs.leftovers() == ([str(imagefs.store / "letter.txt")] if make is _not_a_store else [])
    changed = {path for path in imagefs.root.rglob("*") if path.is_relative_to(imagefs.store)} - set(before)
    assert changed == set()


def test_store_of_an_unknown_scheme(imagefs: World, source: str) -> None:
    imagefs.environment["IMAGEFS_STORE"] = "gopher://example.org/store"
    refused(imagefs, {USAGE, UNSUPPORTED}, "convert", source, "a")


def test_store_full(imagefs: World, source: str) -> None:
    """On a file system of its own: what fits is written, the rest is refused, and what was published before still works."""
    require("root", "to mount a tmpfs")
    imagefs.store.mkdir()
    if _LIBC.mount(b"tmpfs", os.fsencode(imagefs.store), b"tmpfs", 0, b"size=2m"):
        pytest.fail(os.strerror(ctypes.get_errno()))
    try:
        imagefs.run("convert", f"oci:{simple(imagefs.root / 'small', t.archive(ROOT, t.file(b'a', noise(100_000))))}", "small")
        before = imagefs.published()
        refused(imagefs, FULL, "convert", source, "large")
        assert imagefs.published() == before
        assert imagefs.leftovers() == []
        point = imagefs.mount("small")
        assert (point / "a").read_bytes() == noise(100_000)
        imagefs.umount(point)
    finally:
        detach(imagefs.store)


def test_store_read_only(user_world: World, source: str) -> None:
    """As root, no directory is read-only; so as somebody else. Reading works."""
    user_world.convert(f"oci:{shutil.copytree(source[4:], user_world.root / 'layout')}", "mine")
    for path in [user_world.store, *user_world.store.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    other = simple(user_world.root / "other", t.archive(ROOT, t.file(b"b", noise(10_000))))
    refused(user_world, {STORE, ACCESS}, "convert", f"oci:{other}", "other")
    refused(user_world, {STORE, ACCESS}, "rm", "mine")
    assert "mine" in user_world.run("images").out


def test_source_that_may_not_be_read(user_world: World) -> None:
    """It is there: to say that it is not would send its owner looking in the wrong place."""
    hidden = user_world.root / "hidden"
    hidden.mkdir(mode=0o700)
    source = simple(hidden / "layout", t.archive(ROOT, t.file(b"a", b"1")))
    archive = user_world.root / "image.tar"
    pack_directory(source, archive).chmod(0)
    for spec in (f"oci:{source}", str(source), f"dir:{hidden}", f"dir:{source}", str(hidden), f"oci-archive:{archive}", str(archive)):
        assert "may not" in refused(user_world, ACCESS, "convert", spec, "a")


MODES = pytest.mark.parametrize("mode", ["fuse", "kernel"])


@MODES
def test_mountpoint_missing(mode: str, world: World) -> None:
    message = refused(world, MOUNT, "mount", "team/app:v1", world.root / "nowhere", "--mode", mode)
    assert f"the mountpoint {world.root}/nowhere does not exist\n  mkdir -p {world.root}/nowhere" in message
    assert not (world.root / "nowhere").exists()


@MODES
def test_mountpoint_is_a_file(mode: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = refused(world, MOUNT, "mount", "team/app:v1", tmp_path / "file", "--mode", mode)
    assert f"the mountpoint {tmp_path}/file is not a directory" in message


@MODES
def test_mountpoint_is_a_symbolic_link(mode: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    message = refused(world, MOUNT, "mount", "team/app:v1", tmp_path / "link", "--mode", mode)
    assert f"is a symbolic link\n  name the directory itself: {tmp_path}/there" in message


@MODES
def test_mountpoint_not_empty(mode: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_bytes(b"")
    message = refused(world, MOUNT, "mount", "team/app:v1", tmp_path / "full", "--mode", mode)
    assert "is not empty\n  what it holds would be hidden: choose an empty directory" in message
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


@MODES
def test_mountpoint_already_mounted(mode: str, world: World) -> None:
    message = refused(world, MOUNT, "mount", "team/app:v1", world.root / "keeper", "--mode", mode)
    assert f"an image is already mounted at {world.root}/keeper\n  imagefs umount {world.root}/keeper" in message
    assert (world.root / "keeper/a").read_bytes() == noise(3_000_000)


def test_umount_of_what_is_not_mounted(world: World, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        message = refused(world, MOUNT, "umount", place)
        assert f"no image is mounted at {place}\n  `imagefs daemon status` lists the mounts" in message


@pytest.mark.parametrize("command", ["mount", "inspect", "rm", "tag", "diff", "optimize", "prefetch", "cache pin", "profile ls"])
def test_unknown_ref(command: str, world: World, tmp_path: Path) -> None:
    rest = {"mount": [str(tmp_path)], "tag": ["other:v1"], "diff": ["team/app:v1"]}.get(command, [])
    before = world.published()
    message = refused(world, NOT_FOUND, *command.split(), "team/ap:v1", *rest)
    assert "the store has no image team/ap:v1\n  did you mean team/app:v1?" in message, "the nearest one that there is"
    assert world.published() == before


def test_unknown_digest(world: World, tmp_path: Path) -> None:
    message = refused(world, NOT_FOUND, "mount", "0" * 64, tmp_path)
    assert f"the store has no image with the digest {'0' * 64}\n  `imagefs images` lists what there is" in message


@pytest.mark.parametrize("ref", ["", "UPPER", "a b", "a:", ":a", "../etc", "a//b", "a:b:c", "a" * 500, "/", "-x"])
def test_impossible_ref(ref: str, world: World, source: str) -> None:
    before = world.published()
    refused(world, USAGE, "convert", source, "--", ref) if ref.startswith("-") else refused(world, USAGE, "convert", source, ref)
    assert world.published() == before


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["convert"], ["mount", "a"], ["images", "--nonsense"], ["convert", "a", "b", "--jobs", "x"]]
)
def test_usage(arguments: list[str], world: World) -> None:
    done = world.attempt(*arguments)
    assert done.status == USAGE
    assert "Traceback" not in done.err
    assert done.out == ""


def test_daemon_does_not_run(imagefs: World) -> None:
    for command in (["stats"], ["daemon", "status"]):
        done = imagefs.attempt(*command)
        assert done.status in {0, 11}, done.err
        assert "Traceback" not in done.err
    assert imagefs.pids() == []
