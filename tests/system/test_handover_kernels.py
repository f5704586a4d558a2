"""What depends on the kernel, or on who may do what: no RESEND, no root, and a connection that outlives its supervisor."""

import ctypes
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.system.handover import InBackground, Orders, another, check, daemon, kill, status, worker
from tests.system.readers import content, load
from tests.system.world import World, mounts_below, require, wait_until

NAME: Final = "large/2"
_PIDFD_OPEN: Final = 434
_PIDFD_GETFD: Final = 438
_LIBC = ctypes.CDLL(None, use_errno=True)


def test_without_resend_what_is_under_way_fails_at_once_and_what_comes_later_does_not(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), resend=False):
        point = world.mount()
        for _ in range(3):
            pid = worker(world)
            with orders.given("hang"):
                asked = InBackground(lambda: os.getxattr(point / NAME, "user.imagefs.object"))
                wait_until(lambda: not orders.is_there("hang"), "it to be asked")
            kill(pid)
            error = asked.outcome(2)
            assert isinstance(error, OSError)
            assert error.errno == errno.ECONNABORTED
            another(world, pid)
            assert len(os.getxattr(point / NAME, "user.imagefs.object")) == 64
            assert (point / NAME).read_bytes() == content(NAME)


def test_without_resend_a_read_under_way_is_repeated_by_the_kernel(reading_world: World, tmp_path: Path) -> None:
    """What was read ahead and failed is read again when it is wanted: most reads do not even fail."""
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), resend=False):
        point = world.mount()
        pid = worker(world)
        with orders.given("slow"):
            read = InBackground((point / NAME).read_bytes)
            wait_until(lambda: orders.is_there("asked"), "the store to be asked")
            kill(pid)
            another(world, pid)
        result = read.outcome(20)
        assert result == content(NAME) or (isinstance(result, OSError) and result.errno == errno.ECONNABORTED)


def test_without_resend_a_kill_under_load_fails_some_reads_and_hangs_none(reading_world: World) -> None:
    world = reading_world
    with daemon(world, resend=False, pauses=(0.0,)):
        point = world.mount()
        pid = worker(world)
        whims = random.Random(3)
        with load(point, ("pread", "whole", "open", "list")) as under_way:
            for _ in range(15):
                time.sleep(whims.uniform(0.0, 0.4))
                kill(pid)
                pid = another(world, pid)
            seen = under_way.stop()
        assert all(one["reads"] > 0 for one in seen), seen
        assert sum(one["wrong"] for one in seen) == 0
        assert max(one["longest"] for one in seen) < 5
        assert {error.split()[1] for one in seen for error in one["errors"]} <= {"ECONNABORTED"}
        print(f"\n15 kills without RESEND: {sum(one['failed'] for one in seen)} of {sum(one['reads'] for one in seen)} failed")
        assert (point / NAME).read_bytes() == content(NAME)


def test_without_resend_a_reload_waits_for_what_is_under_way(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), resend=False):
        point = world.mount()
        pid = worker(world)
        with orders.given("slow"):
            read = InBackground((point / NAME).read_bytes)
            wait_until(lambda: orders.is_there("asked"), "the store to be asked")
            reload = InBackground(lambda: world.run("daemon", "reload"))
            time.sleep(2)
        assert read.outcome(20) == content(NAME)
        reload.outcome(30)
        assert worker(world) != pid
        with load(point, ("pread", "whole", "open", "list")) as under_way:
            for _ in range(8):
                world.run("daemon", "reload")
            seen = under_way.stop()
        check(seen)


@pytest.fixture
def user(reading_store: str, tmp_path: Path) -> Iterator[World]:
    """A world of a user without any rights, with the same image."""
    require("root", "becomes another user")
    require("fusermount3", "mounts without root")
    device = Path("/dev/fuse")
    mode = device.stat().st_mode & 0o7777
    device.chmod(0o666)
    made = World(tmp_path / "user")
    subprocess.run(["cp", "-a", reading_store.removeprefix("file://"), made.store], check=True)
    made.environment["IMAGEFS_LOG_LEVEL"] = "info"
    made.become(65534)
    yield made
    ended = made.close()
    device.chmod(mode)
    assert ended == []


def read_as_user(path: Path) -> bytes:
    done = subprocess.run(["cat", path], user=65534, group=65534, extra_groups=[], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_root_a_worker_is_replaced_too(user: World) -> None:
    point = user.mount()
    pid = worker(user)
    for how in ("kill", "reload", "kill"):
        if how == "kill":
            kill(pid)
        else:
            told = user.run("daemon", "reload", "--json").json
            assert told["worker_pid"] != pid
        pid = another(user, pid)
        assert read_as_user(point / NAME) == content(NAME)
    assert status(user)["worker_restarts"] == 3
    user.run("umount", point)
    wait_until(lambda: user.pids() == [], "the daemon to end", 20)
    assert mounts_below(user.root) == []


@pytest.mark.parametrize("resend", [None, False])
def test_a_mount_whose_worker_dies_before_the_kernel_has_its_answer_is_made_again(user: World, resend: bool | None) -> None:
    orders = Orders(user.root / "orders")
    user.become(65534)
    point = user.root / "mnt"
    point.mkdir()
    os.chown(point, 65534, 65534)
    with daemon(user, point, command=orders.command(user), resend=resend):
        with orders.given("die-unanswered"):
            os.chown(user.root / "orders/die-unanswered", 65534, 65534)
            user.run("mount", "test", point)
            assert not orders.is_there("die-unanswered"), "it did not die"
        assert mounts_below(point) == [os.fsencode(point)]
        assert read_as_user(point / NAME) == content(NAME)
        assert status(user)["worker_restarts"] == 1
        user.run("umount", point)
    assert mounts_below(point) == []


def test_without_root_a_mount_that_goes_while_there_is_no_worker_ends_the_daemon(user: World) -> None:
    point = user.mount()
    pid = worker(user)
    kill(pid, signal.SIGSTOP)
    subprocess.run(["fusermount3", "-u", "-z", point], user=65534, group=65534, extra_groups=[], check=True, timeout=20)
    kill(pid)
    wait_until(lambda: user.pids() == [], "the daemon to end", 20)
    assert read_as_user(user.mount() / NAME) == content(NAME)


def test_without_root_a_supervisor_that_is_killed_is_recovered_from(user: World) -> None:
    point = user.mount()
    kill(status(user)["pid"])
    wait_until(lambda: user.pids() == [], "the worker to end too", 5)
    assert mounts_below(point) == [os.fsencode(point)]
    user.run("mount", "test", point)
    assert mounts_below(point) == [os.fsencode(point)]
    assert read_as_user(point / NAME) == content(NAME)


_ADOPT: Final = """
import sys
from imagefs.config import load_config
from imagefs.daemon.instance import INIT_NAME, Role
from imagefs.daemon.supervisor import Ways, run_daemon
from imagefs.fuse.handover import Connection
role = Role(load_config())
connection = Connection.adopted(int(sys.argv[1]), (role.directory / INIT_NAME).read_bytes())
run_daemon(role, lambda: print("ready", flush=True), Ways(adopted=connection))
"""


def test_a_supervisor_is_given_the_connection_of_one_that_was_killed(reading_world: World) -> None:
    """What a service manager that keeps descriptors will do; here this process keeps it."""
    world = reading_world
    with daemon(world) as first:
        point = world.mount()
        handle = _LIBC.syscall(_PIDFD_OPEN, first.pid, 0)
        descriptors = Path(f"/proc/{first.pid}/fd")
        number = next(int(path.name) for path in descriptors.iterdir() if str(path.readlink()) == "/dev/fuse")
        kept = _LIBC.syscall(_PIDFD_GETFD, handle, number, 0)
        assert kept >= 0
        os.close(handle)
        with load(point) as under_way:
            time.sleep(0.5)
            first.kill()
            first.wait(10)
            time.sleep(0.5)
            with subprocess.Popen(
                [sys.executable, "-c", _ADOPT, str(kept)], env=world.env, cwd=world.root, stdout=subprocess.PIPE, pass_fds=(kept,)
            ) as second:
                os.close(kept)
                assert second.stdout is not None
                assert second.stdout.readline() == b"ready\n", world.logs()
                time.sleep(0.5)
                seen = under_way.stop()
                assert [mount["mountpoint"] for mount in status(world)["mounts"]] == [str(point)]
                assert (point / NAME).read_bytes() == content(NAME)
                second.terminate()
                assert second.wait(30) == 0
        check(seen)
    assert mounts_below(world.root) == []
