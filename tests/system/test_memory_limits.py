"""A daemon whose cgroup has too little memory: to start at all, or for what is asked of it. The kernel kills, and that is said."""

import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.system.handover import check, kill, status
from tests.system.readers import load
from tests.system.world import World, missing, mounts_below, require, wait_until

_DAEMON_ERROR: Final = 11


@contextlib.contextmanager
def _memory_group(limit: int) -> Iterator[Path]:
    """Make a cgroup whose processes get no more memory than ``limit`` bytes; what is left in it at the end is ended."""
    require("root", "makes a cgroup")
    unified, older = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    name = f"imagefs-test-{secrets.token_hex(4)}"
    if (older / "memory.limit_in_bytes").exists():
        group, file = older / name, "memory.limit_in_bytes"
    elif "memory" in _read(unified / "cgroup.subtree_control").split():
        group, file = unified / name, "memory.max"
    else:
        missing("no cgroup can be made here that limits memory")
    group.mkdir()
    try:
        (group / file).write_text(str(limit))
        yield group
    finally:
        for pid in map(int, _read(group / "cgroup.procs").split()):
            kill(pid)
        wait_until(lambda: not _read(group / "cgroup.procs"), "all in the cgroup to end")
        group.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


_INSIDE: Final = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"


def _inside(group: Path, world: World, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _INSIDE, str(group), *world.command, *map(str, arguments)]
    return subprocess.run(command, env=world.env, cwd=world.root, capture_output=True, text=True, timeout=120, check=False)


def test_with_too_little_memory_to_start_it_is_said(reading_world: World) -> None:
    """The command is in the cgroup too: where that is what is killed, nobody is left to say so."""
    world = reading_world
    (world.root / "mnt").mkdir()
    said = []
    for limit in range(16, 56, 8):
        with _memory_group(limit << 20) as group:
            done = _inside(group, world, "mount", "test", "mnt", "--mode", "fuse")
            assert done.returncode in {-signal.SIGKILL, 0, _DAEMON_ERROR}, (limit, done)
            if done.returncode == _DAEMON_ERROR:
                said.append(done.stderr)
                wait_until(lambda: not world.pids(), "the daemon that could not start to be gone")
            elif done.returncode == 0:
                world.attempt("umount", "mnt")
        wait_until(lambda: not mounts_below(world.root / "mnt"), "nothing to be mounted")
    assert said
    for words in said:
        assert "memory ran out" in words or "memory limit" in words, words
        assert "Traceback" not in words
    # What was left of all these is nothing that stands in the way.
    world.umount(world.mount())


def test_a_worker_that_runs_out_of_memory_is_followed_by_another_and_nobody_notices(reading_world: World) -> None:
    world = reading_world
    world.environment["IMAGEFS_RAM_BYTES"] = "512MiB"
    with _memory_group(96 << 20) as group:
        (world.root / "mnt").mkdir()
        started = _inside(group, world, "mount", "test", "mnt", "--mode", "fuse", "--no-prefetch")
        assert started.returncode == 0, started.stderr
        with load(world.root / "mnt", ("whole", "whole", "pread", "open")) as under_way:
            wait_until(lambda: _was_hit(group), "the limit to be hit", 30)
            # And for a while after that.
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 3, "more reads")
            seen = under_way.stop()
        check(seen)
        crash = status(world)["crash"]
        if crash is not None:
            assert crash["how"] == "it was killed by signal 9 (SIGKILL), as its memory ran out"
        world.umount(world.root / "mnt")
        wait_until(lambda: not world.pids(), "the daemon to end with its last mount")


def _was_hit(group: Path) -> bool:
    """Say whether a process of the cgroup has asked for more than there is."""
    counts = dict(line.split() for line in _read(group / "memory.events").splitlines())
    return int(_read(group / "memory.failcnt") or counts.get("max", "0")) > 0
