"""Hosts that lack something, or on which somebody meddles: what works does, and what does not is said."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.mount.mountinfo import FUSE_TYPE, read_mounts
from tests.matrix.place import settle, small_disk
from tests.system.world import World, mounts_below, require, tool, wait_until

MIB = 1 << 20
_ACCESS = 10


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world with an image ``test`` of a program and something to read."""
    for feature in ("root", "fuse"):
        require(feature)
    made = World(tmp_path / "w")
    made.mode = "auto"
    source = made.root / "source"
    source.mkdir()
    (source / "true").write_bytes(Path("/bin/true").read_bytes() + os.urandom(MIB))
    (source / "true").chmod(0o755)
    (source / "data").write_bytes(os.urandom(2 * MIB))
    made.convert(f"dir:{source}")
    yield made
    assert made.close() == []


def _reads(world: World, point: Path) -> None:
    assert (point / "data").read_bytes() == (world.root / "source/data").read_bytes()


def _mode(world: World) -> str:
    return str(world.run("daemon", "status", "--json").json["mounts"][0]["mode"])


def test_without_the_right_to_mount_it_is_said_what_is_missing(world: World) -> None:
    point = world.root / "mnt"
    point.mkdir()
    bare = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *world.command, "mount", "test", str(point)]
    done = subprocess.run(bare, env=world.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == _ACCESS
    assert "Operation not permitted" in done.stderr
    assert "doctor" in done.stderr
    wait_until(lambda: not world.pids(), "the daemon that could not start to be gone")
    assert mounts_below(world.root) == []


def test_without_dev_fuse_it_is_said_what_is_missing(world: World) -> None:
    (world.root / "mnt").mkdir()
    script = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"'
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*inside, *world.command, "mount", "test", "mnt"],
        env=world.env,
        cwd=world.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode not in {0, 1}, done.stderr
    assert "/dev/fuse" in done.stderr
    assert "Traceback" not in done.stderr


def test_programs_run_although_the_cache_is_on_a_file_system_without_exec(world: World) -> None:
    with small_disk(world.root, 64) as disk:
        tool("mount", "-o", "remount,noexec,nodev,nosuid", str(disk))
        world.cache = disk / "cache"
        point = world.mount()
        assert _mode(world) == "kernel"
        for _ in range(2):
            assert subprocess.run([point / "true"], check=False, timeout=30).returncode == 0
            settle(world)
        world.umount(point)
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


def test_a_full_cache_disk_keeps_no_image_from_being_mounted_again(world: World) -> None:
    with small_disk(world.root, 64) as disk:
        world.cache = disk / "cache"
        world.environment["IMAGEFS_CACHE_FLOOR"] = "0"
        world.umount(world.mount())
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")
        with (disk / "filler").open("wb", buffering=0) as filler:
            for size in (MIB, 4096, 1):
                try:
                    while filler.write(bytes(size)):
                        pass
                except OSError:
                    continue
        point = world.mount()
        _reads(world, point)
        world.umount(point)
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


def test_a_connection_that_is_aborted_ends_the_daemon_and_the_next_one_works(world: World) -> None:
    point = world.mount()
    _reads(world, point)
    settle(world)
    device = next(entry.device for entry in read_mounts() if entry.mountpoint.startswith(f"{world.runtime}/") and entry.fstype == FUSE_TYPE)
    control = Path("/sys/fs/fuse/connections")
    mounted = not any(control.iterdir())
    if mounted:
        tool("mount", "-t", "fusectl", "none", str(control))
    try:
        (control / device.partition(":")[2] / "abort").write_text("1")
    finally:
        if mounted:
            tool("umount", str(control))
    wait_until(lambda: not world.pids(), "the daemon to end")
    assert "connection_lost" in world.logs()
    assert mounts_below(world.root) == []
    _reads(world, world.mount())
