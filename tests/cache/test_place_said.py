"""Cache directories that must not be used, or of which something follows: what the commands say, and that nothing is changed there."""

import ctypes
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.saying import ACCESS, USAGE, says, small_source
from tests.system.world import World, detach, require

_LIBC = ctypes.CDLL(None, use_errno=True)
_RDONLY = 1
NOBODY = 65534


def _tmpfs(folder: Path, options: str, flags: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    if _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode()):
        pytest.fail(os.strerror(ctypes.get_errno()))


def _finding(world: World, name: str = "cache") -> dict[str, str]:
    document = json.loads(world.attempt("doctor", "--json", seconds=60).out)
    (found,) = [finding for finding in document["findings"] if finding["name"] == name]
    assert document["ok"] is (not any(finding["state"] == "fail" for finding in document["findings"]))
    return dict(found)


def _state(root: Path, place: str) -> list[tuple[str, int, int]]:
    """Return what is there, and of what age."""
    paths = [path for path in root.rglob("*") if path.relative_to(root).parts[0] == place.partition("/")[0]]
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in paths)


@pytest.fixture
def world(imagefs: World) -> Iterator[World]:
    """A world with the image ``app``, and a file system of its own at ``disk`` where a test mounts one."""
    require("root", "mounts through /dev/fuse as root")
    imagefs.convert(small_source(imagefs.root / "source"), "app")
    (imagefs.root / "mnt").mkdir()
    yield imagefs
    # Mounts, processes, and only then what they keep their files on.
    left = imagefs.close()
    detach(imagefs.root / "disk")
    assert left == []


def _letters(path: Path) -> None:
    path.mkdir()
    (path / "letters").write_text("mine")


def _a_file(path: Path) -> None:
    path.write_text("mine")


def _below_a_file(path: Path) -> None:
    path.parent.write_text("mine")


def _of_mode(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        path.chmod(mode)

    return make


def _of_nobody(path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


def _read_only(path: Path) -> None:
    _tmpfs(path, "mode=700", _RDONLY)


@pytest.mark.parametrize(
    ("make", "place", "status", "text"),
    [
        (_letters, "letters", USAGE, r"letters is not a cache: it has other files and no imagefs-cache.json\na new cache wants an empty"),
        (_a_file, "file", USAGE, r"the cache \S+/file is not a directory\ncheck --cache and IMAGEFS_CACHE"),
        (_below_a_file, "file/cache", USAGE, r"the cache \S+/file/cache is not a directory\ncheck --cache and IMAGEFS_CACHE"),
        (_of_mode(0o777), "open", ACCESS, r"the cache directory \S+/open can be written by others\nchmod go-w \S+/open"),
        (_of_mode(0o1777), "sticky", ACCESS, r"can be written by others\nchmod go-w \S+/sticky"),
        (_of_mode(0o770), "group", ACCESS, r"can be written by others\nchmod go-w \S+/group"),
        (_of_nobody, "theirs", ACCESS, r"the cache directory \S+/theirs belongs to another user \(nobody\)\nuse another --cache"),
        (_read_only, "disk", ACCESS, r"cannot use the cache directory \S+/disk: Read-only file system\ncheck --cache and IMAGEFS_CACHE"),
        (None, "x" * 300, ACCESS, r"cannot use the cache directory \S+: File name too long\ncheck --cache and IMAGEFS_CACHE"),
    ],
    ids=["letters", "file", "below a file", "open", "sticky", "group", "theirs", "read-only", "too long"],
)
def test_a_directory_that_must_not_be_used(
    *, make: Callable[[Path], None] | None, place: str, status: int, text: str, world: World
) -> None:
    world.cache = world.root / place
    if make is not None:
        make(world.cache)
    before = _state(world.root, place)
    for command in (["mount", "app", str(world.root / "mnt")], ["cache", "status"], ["cache", "clear"]):
        says(world, status, text, *command)
    assert _state(world.root, place) == before
    assert list((world.root / "mnt").iterdir()) == []
    if make is not None:
        found = _finding(world)
        assert found["state"] == "fail", found
        assert found["fix"], found


def test_a_directory_that_this_user_may_not_write_to(user_world: World) -> None:
    """Above it, in it, and where it may not even be looked for."""
    source = small_source(user_world.root / "source")
    user_world.become(NOBODY)
    user_world.convert(source, "app")
    point = user_world.root / "mnt"
    point.mkdir()
    os.chown(point, NOBODY, NOBODY)
    above, hidden = user_world.root / "above", user_world.root / "hidden"
    above.mkdir()
    above.chmod(0o755)
    hidden.mkdir(mode=0o700)
    denied = r"cannot use the cache directory \S+: Permission denied\ncheck --cache and IMAGEFS_CACHE"
    for place, text in (
        (above / "cache", denied),
        (hidden / "cache", denied),
        (hidden, denied),
        (above, r"belongs to another user \(root\)\nuse another --cache"),
    ):
        user_world.cache = place
        for command in (["mount", "app", str(point)], ["cache", "status"]):
            says(user_world, ACCESS, text, *command)
        found = _finding(user_world)
        assert found["state"] == "fail"
        assert "Traceback" not in found["detail"]
        assert list(above.iterdir()) == list(hidden.iterdir()) == []


def test_memory_is_used_and_what_follows_is_said(world: World) -> None:
    _tmpfs(world.root / "disk", "size=64m,mode=755")
    world.cache = world.root / "disk/cache"
    point = world.mount("app")
    assert (point / "small").read_text() == "hello\n"
    (warning,) = world.run("cache", "status", "--json").json["warnings"]
    assert re.fullmatch(r"\S+/disk/cache is on tmpfs: the SSD tier takes memory there, and is gone after a reboot", warning)
    assert warning in world.run("cache", "status").out
    events = [json.loads(line) for line in world.logs().splitlines() if line.startswith("{")]
    assert [event["warning"] for event in events if event["event"] == "cache_place"] == [warning]
    found = _finding(world)
    assert (found["state"], found["detail"]) == ("warn", warning)
    world.umount(point)


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_what_is_too_small_for_a_frame_keeps_nothing_and_serves_all(world: World, size: int) -> None:
    """In KiB: no room for the index, for one frame, for a few."""
    _tmpfs(world.root / "disk", f"size={size}k,mode=700")
    world.cache = world.root / "disk"
    done = world.attempt("mount", "app", str(world.root / "mnt"), "--mode", "fuse")
    if done.status:
        # Not even what a mount has to have: said, and nothing is mounted.
        assert done.status == 8, done.err
        assert re.search(r"cannot keep \S+: No space left on device\n.*use another --cache", done.err), done.err
        assert list((world.root / "mnt").iterdir()) == []
        return
    for _ in range(2):
        for name in ("small", "large"):
            assert (world.root / "mnt" / name).read_bytes() == (world.root / "source" / name).read_bytes()
    warnings = world.run("cache", "status", "--json").json["warnings"]
    assert any(f"is on a file system of {size} KiB: the SSD tier keeps next to nothing there" in warning for warning in warnings)
    assert _finding(world)["state"] in {"warn", "fail"}
    assert world.stats()["failed_requests"] == 0
    assert "Traceback" not in world.logs()
    world.umount(world.root / "mnt")


@pytest.mark.parametrize("size", ["1", "200", "1MiB", "63MiB"])
def test_a_bound_that_is_too_small(world: World, size: int | str) -> None:
    world.environment["IMAGEFS_CACHE_BYTES"] = str(size)
    says(world, USAGE, r"IMAGEFS_CACHE_BYTES: \S+ is too small for the SSD tier\nat least 64MiB, or 0", "mount", "app", world.root / "mnt")
    assert not world.cache.exists()


def test_a_cache_of_an_older_version_is_set_aside_and_goes_when_it_is_cleared(world: World) -> None:
    point = world.mount("app")
    assert (point / "small").read_text() == "hello\n"
    world.umount(point)
    (world.cache / "imagefs-cache.json").write_text('{"format": 1}\n')
    kept = sorted(path.name for path in world.cache.iterdir() if path.name in {"objects", "lmdb", "partial"})
    assert kept
    point = world.mount("app")
    assert (point / "small").read_text() == "hello\n"
    assert json.loads((world.cache / "imagefs-cache.json").read_text())["format"] > 1
    assert set(kept) <= {path.name for path in (world.cache / "aside/0").iterdir()}
    assert "cache_set_aside" in world.logs()
    world.umount(point)
    world.run("cache", "clear")
    assert not (world.cache / "aside").exists()


def test_a_directory_is_made_for_its_user_alone(world: World) -> None:
    point = world.mount("app")
    assert stat.S_IMODE(world.cache.stat().st_mode) == 0o700
    world.umount(point)
