"""The instance's directory, meddled with: emptied under a daemon, fought over by two, or left by a dead daemon of another version."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from tests.system.handover import another, check, daemon, kill, status, worker
from tests.system.readers import content, load
from tests.system.world import World, mounts_below, require, wait_until

NAME: Final = "large/3"

_IMPATIENT: Final = """
import sys
from imagefs.daemon import instance
instance._LOCK_SECONDS = 1.0
from imagefs_cli.main import main
sys.exit(main(["daemon", "run"]))
"""


def directory(world: World) -> Path:
    return next(path for path in world.runtime.iterdir() if path.is_dir())


def test_what_is_deleted_under_a_daemon_is_made_again(reading_world: World) -> None:
    world = reading_world
    with daemon(world) as supervisor:
        point = world.mount()
        pid = worker(world)
        with load(point, ("pread", "open")) as under_way:
            for path in directory(world).iterdir():
                # As rm -rf would; it cannot remove what is mounted.
                if path.is_file() or path.is_socket():
                    path.unlink()
            wait_until((directory(world) / "control.sock").exists, "the socket to be back", 10)
            pid = another(world, pid)
            assert status(world)["pid"] == supervisor.pid
            assert [mount["mountpoint"] for mount in status(world)["mounts"]] == [str(point)]
            # What the next ones need is there too: one that is started by a crash, and another mount.
            kill(pid)
            another(world, pid)
            second = world.mount(name="second")
            seen = under_way.stop()
        check(seen)
        assert (second / NAME).read_bytes() == content(NAME)
        assert status(world)["pid"] == supervisor.pid
        assert "directory_deleted" in world.logs()
    assert mounts_below(world.root) == []


def test_of_daemons_that_are_started_at_once_one_runs(reading_world: World) -> None:
    world = reading_world
    command = [world.interpreter, "-c", _IMPATIENT]
    started = [subprocess.Popen(command, env=world.env, cwd=world.root, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        wait_until(lambda: sum(process.poll() is None for process in started) == 1, "the others to give up", 30)
        winner = next(process for process in started if process.poll() is None)
        assert status(world)["pid"] == winner.pid
        point = world.mount()
        assert (point / NAME).read_bytes() == content(NAME)
        for process in started:
            if process is not winner:
                assert process.returncode == 11
                assert "already running" in process.communicate(timeout=10)[1]
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert mounts_below(world.root) == []


@pytest.mark.parametrize("mode", ["fuse", "kernel"])
def test_a_mount_of_a_dead_daemon_of_another_version_is_taken_away(reading_world: World, mode: str) -> None:
    if mode == "kernel":
        require("erofs")
    world = reading_world
    point = world.root / "mnt"
    point.mkdir()
    world.run("mount", "test", point, "--mode", mode)
    pid = int(status(world)["pid"])
    kill(pid)
    wait_until(lambda: world.pids() == [], "its worker to end too", 10)
    table = directory(world) / "mounts.json"
    # A table that this version cannot read: all that it would say is not known.
    table.write_text(json.dumps({"format": 99, "images": [str(point)]}))
    (directory(world) / "daemon.pid").write_text(f"{pid}\n")
    assert mounts_below(point) == [os.fsencode(point)]
    if mode == "kernel":
        # Its files that are on this host can still be read, so it is left to who knows that nobody does.
        world.run("umount", point)
        assert mounts_below(point) == []
    world.run("mount", "test", point, "--mode", mode)
    assert mounts_below(point) == [os.fsencode(point)]
    assert (point / NAME).read_bytes() == content(NAME)
    begun = time.monotonic()
    world.run("umount", point)
    assert time.monotonic() - begun < 20
    assert mounts_below(world.root) == []
