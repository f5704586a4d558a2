"""In which mode an image is mounted of which nothing is said: kernel mode where that works, and why not where it does not."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.errors import MountError
from imagefs.mount.mountinfo import FUSE_TYPE, OVERLAY_TYPE, mount_at
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import World, require, wait_until

DATA = noise(100_000, 7)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require("root", "mounts as root")
    found = Place(tmp_path / "place")
    maker = found.maker()
    maker.file("data", DATA)
    maker.publish("test:latest")
    yield found
    assert found.close() == []


def _fstype(path: Path) -> str:
    entry = mount_at(path)
    assert entry is not None
    return entry.fstype


def test_kernel_mode_where_it_works(place: Place) -> None:
    path = place.mountpoint()
    result = client.mount(replace(place.config, mode="auto"), mountpoint=path, ref="test")
    assert result["mode"] == "kernel"
    assert "overlayfs over EROFS" in result["reason"]
    assert _fstype(path) == OVERLAY_TYPE
    assert (path / "data").read_bytes() == DATA


def test_what_is_asked_for_wins_over_the_configuration(place: Place) -> None:
    path = place.mountpoint()
    result = client.mount(replace(place.config, mode="kernel"), mountpoint=path, ref="test", mode="fuse")
    assert (result["mode"], result["reason"]) == ("fuse", "asked for")
    assert _fstype(path) == FUSE_TYPE


def test_fuse_mode_where_a_mount_in_kernel_mode_fails(place: Place) -> None:
    client.mount(place.config, mountpoint=place.mountpoint("first"), ref="test")
    # No directory of trees can be made in that place.
    (place.config.instance_dir() / "trees").write_text("")
    with pytest.raises(MountError, match="cannot make"):
        client.mount(place.config, mountpoint=place.mountpoint("kernel"), ref="test", mode="kernel")
    path = place.mountpoint()
    result = client.mount(place.config, mountpoint=path, ref="test", mode="auto")
    assert result["mode"] == "fuse"
    assert "cannot make" in result["reason"]
    assert (path / "data").read_bytes() == DATA
    assert "kernel_mode_failed" in place.log()
    assert {mount["mode"] for mount in client.status(place.config)["mounts"]} == {"fuse"}
    client.umount(place.config, path)
    assert mount_at(path) is None
    # The answer of kernel mode's failure left nothing behind.
    (place.config.instance_dir() / "trees").unlink()


def test_fuse_mode_where_the_kernel_mounts_no_tree(tmp_path: Path) -> None:
    """Root of a user namespace may mount FUSE and overlays, but no EROFS."""
    require("root", "makes a user namespace that /dev/fuse is open to")
    world = World(tmp_path / "w")
    (world.root / "source").mkdir()
    (world.root / "source/data").write_bytes(DATA)
    world.convert(f"dir:{world.root}/source")
    (world.root / "mnt").mkdir()
    script = """
    "$@" mount test mnt && cmp mnt/data source/data && "$@" daemon status --json && "$@" umount mnt
    "$@" mount test mnt --mode kernel
    echo "status $?"
    """
    inside = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*inside, "sh", "-c", script, "sh", *world.command],
        env=world.env,
        cwd=world.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    status, last = done.stdout.rsplit("status", 1)
    assert json.loads(status)["mounts"][0]["mode"] == "fuse"
    assert last.strip() == "4"
    assert "fuse mode: kernel mode cannot be on this host: EROFS: " in done.stderr
    wait_until(lambda: not world.pids(), "the daemons to end with their namespace")
