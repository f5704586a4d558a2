"""The worker dies, or hangs; who reads from a mount notices no more than a moment's silence. Through the front door."""

import errno
import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from tests.system.handover import InBackground, Orders, another, daemon, descriptors, is_dead, kill, status, worker
from tests.system.readers import content
from tests.system.world import World, mounts_below, wait_until

NAME: Final = "large/3"


def test_a_worker_has_no_descriptor_that_it_does_not_need(reading_world: World) -> None:
    world = reading_world
    world.environment["IMAGEFS_CACHE_BYTES"] = "0"
    point = world.mount()
    pid = worker(world)
    supervisor = int(status(world)["pid"])
    keeps = descriptors(supervisor)

    def check_descriptors(pid: int) -> None:
        found = descriptors(pid)
        assert sum(name.endswith("/daemon.lock") for name in found) == 1
        assert found.count("/dev/fuse") == 1
        assert found.count("pipe:") <= 2  # what libfuse splices through
        # The channel, the listener, that of the metrics, and the two pairs that wake the event loop; nobody is connected.
        wait_until(lambda: descriptors(pid).count("socket:") == 7, f"seven sockets, not {found}")
        assert descriptors(supervisor) == keeps

    assert keeps.count("/dev/fuse") == 1
    check_descriptors(pid)
    kill(pid)
    pid = another(world, pid)
    check_descriptors(pid)
    world.run("daemon", "reload")
    check_descriptors(another(world, pid))
    world.umount(point)
    wait_until(lambda: is_dead(supervisor), "the supervisor to end", 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_read_under_way_is_answered_by_the_next_worker(reading_world: World, tmp_path: Path, number: int) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)):
        point = world.mount()
        pid = worker(world)
        with orders.given("slow"):
            read = InBackground((point / NAME).read_bytes)
            wait_until(lambda: orders.is_there("asked"), "the store to be asked")
            kill(pid, number)
            another(world, pid)
            assert read.is_alive()
        assert read.outcome(20) == content(NAME)
        how = status(world)["crash"]["how"]
        assert how == f"it was killed by signal {number} ({signal.Signals(number).name})"


def test_files_that_were_open_and_mapped_are_read_on(reading_world: World) -> None:
    world = reading_world
    point = world.mount()
    pid = worker(world)
    with (point / NAME).open("rb", buffering=0) as file:
        head = file.read(5000)
        kill(pid)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = head + b"".join(iter(lambda: file.read(1 << 20), b""))
    assert data == content(NAME)


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_worker_that_is_silent_is_replaced(reading_world: World, tmp_path: Path, how: str) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), silence=2.0):
        point = world.mount()
        pid = worker(world)
        begun = time.monotonic()
        asked = None
        if how == "stopped":
            kill(pid, signal.SIGSTOP)
        else:
            with orders.given("hang"):
                asked = InBackground(lambda: os.getxattr(point / NAME, "user.imagefs.object"))
                wait_until(lambda: not orders.is_there("hang"), "it to hang")
        read = InBackground((point / NAME).read_bytes)
        assert read.outcome(20) == content(NAME)
        took = time.monotonic() - begun
        assert 1.5 < took < 8
        found = status(world)
        assert found["worker_pid"] not in {pid, None}
        silent = re.match(r"it was silent for ([\d.]+) s, and ", found["crash"]["how"])
        assert silent is not None
        assert 2 <= float(silent[1]) < 8
        assert found["crash"]["how"].endswith("(SIGKILL)" if how == "stopped" else "(SIGABRT)")
        if asked is not None:
            assert len(bytes(asked.outcome(20))) == 64  # type: ignore[call-overload]
            # Where it hung is in the log, and in what is kept of the first crash.
            assert "in hanging" in found["crash"]["log"]
            assert "in hanging" in world.logs()


def test_a_supervisor_that_stood_still_does_not_blame_its_worker(reading_world: World) -> None:
    world = reading_world
    with daemon(world, silence=4.0) as supervisor:
        world.mount()
        pid = worker(world)
        for victim in (supervisor.pid, pid):
            kill(victim, signal.SIGSTOP)
        time.sleep(6)
        for victim in (supervisor.pid, pid):
            kill(victim, signal.SIGCONT)
        time.sleep(2)
        assert worker(world) == pid


def test_a_crash_loop_keeps_the_mounts_and_tells_how_it_began(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), pauses=(0.0, 0.1, 0.2, 1.0, 3.0)):
        point = world.mount()
        pid = worker(world)
        usual = status(world)
        with orders.given("crash"):
            read = InBackground((point / NAME).read_bytes)
            kill(pid, signal.SIGUSR1)
            wait_until(lambda: world.logs().count("worker_died") == 5, "workers to die", 30)
            found = status(world)
            assert found["worker_pid"] is None
            assert found["worker_restarts"] == 5
            assert set(found) == set(usual) - {"loaded_later"}
            assert found["directory"] == usual["directory"]
            assert found["crash"]["how"] == "it was killed by signal 10 (SIGUSR1)"
            assert found["crash"]["worker_pid"] == pid
            assert [mount["mountpoint"] for mount in found["mounts"]] == [str(point)]
            kept = json.loads(next(world.runtime.glob("*/crash.json")).read_text())
            assert kept["how"] == found["crash"]["how"]
            assert "killed by signal 10" in world.run("daemon", "status").out
            refused = world.attempt("mount", "test", str(world.root / "other"), "--json")
            assert refused.status == 11
            assert "keeps ending" in refused.json["error"]["message"]
            assert os.fsencode(point) in mounts_below(point)
        pauses = [json.loads(line)["again_in"] for line in world.logs().splitlines() if '"worker_died"' in line]
        assert pauses == [0.0, 0.1, 0.2, 1.0, 3.0]
        assert read.outcome(30) == content(NAME)
        assert "Fatal Python error: Aborted" in world.logs()


def test_a_daemon_in_a_crash_loop_can_be_stopped(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world), pauses=(0.0, 30.0)) as supervisor:
        point = world.mount()
        (point / "small/001").read_bytes()
        with orders.given("fail"):
            kill(worker(world))
            wait_until(lambda: world.logs().count("worker_died") == 2, "workers to die", 30)
            read = InBackground((point / NAME).read_bytes)
            stopped = world.run("daemon", "stop", "--json").json
            assert stopped == {"pid": supervisor.pid, "mounts": 1}
            assert supervisor.wait(10) == 0
            # It waited for an answer that nobody will give.
            error = read.outcome(10)
            assert isinstance(error, OSError)
            assert error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        assert mounts_below(world.root) == []
        assert not list(world.runtime.glob("*/control.sock"))


def test_a_supervisor_that_is_killed_takes_everything_along(reading_world: World) -> None:
    world = reading_world
    point = world.mount()
    found = status(world)
    file = os.open(point / NAME, os.O_RDONLY)
    kill(found["pid"])
    wait_until(lambda: is_dead(found["worker_pid"]), "the worker to end too", 5)
    for call in (lambda: os.read(file, 5000), lambda: os.close(file)):
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            call()
    other = world.mount(name="other")
    assert (other / NAME).read_bytes() == content(NAME)
    assert mounts_below(point) == []
    assert (status(world)["worker_restarts"], status(world)["crash"]) == (0, None)


def test_a_stopped_worker_ends_with_its_supervisor(reading_world: World) -> None:
    world = reading_world
    world.mount()
    found = status(world)
    kill(found["worker_pid"], signal.SIGSTOP)
    kill(found["pid"])
    wait_until(lambda: is_dead(found["worker_pid"]), "the worker to end too", 5)
    assert (world.mount(name="other") / "small/005").read_bytes() == content("small/005")


def test_commands_that_meet_a_dying_worker_succeed(reading_world: World) -> None:
    world = reading_world
    with daemon(world, pauses=(0.0,)):
        world.mount(name="keeper")
        whims = random.Random(2)
        enough = threading.Event()

        def commands(number: int) -> int:
            count = 0
            while not enough.is_set() or count <= 3:
                point = world.mount(name=f"m{number}")
                assert (point / "small/009").read_bytes() == content("small/009")
                world.run("stats", "--json")
                world.umount(point)
                count += 1
            return count

        running = [InBackground(lambda number=number: commands(number)) for number in range(2)]  # type: ignore[misc]
        pid, kills, begun = worker(world), 0, time.monotonic()
        while any(one.is_alive() for one in running):
            time.sleep(whims.uniform(0.2, 0.9))
            kill(pid)
            pid = another(world, pid)
            kills += 1
            if kills > 8:
                enough.set()
            assert time.monotonic() - begun < 100, world.logs()
        assert enough.is_set()
        assert all(isinstance(one.result, int) for one in running), ([one.result for one in running], world.logs())
        assert [mount["mountpoint"] for mount in status(world)["mounts"]] == [str(world.root / "keeper")]
        assert mounts_below(world.root / "m0") == mounts_below(world.root / "m1") == []


@pytest.mark.parametrize("when", ["die-bound", "die-unmounted", "die-asked"])
def test_a_command_whose_worker_dies_before_it_answers_succeeds(reading_world: World, tmp_path: Path, when: str) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)):
        keeper, point = world.mount(name="keeper"), world.root / "mnt"
        if when != "die-bound":
            world.mount()
        with orders.given(when):
            match when:
                case "die-bound":
                    point.mkdir()
                    told = world.run("mount", "test", str(point), "--mode", "fuse", "--json").json
                    assert told["mountpoint"] == str(point)
                case "die-unmounted":
                    world.run("umount", str(point))
                case "die-asked":
                    assert len(status(world)["mounts"]) == 2
            assert not orders.is_there(when), "it did not die"
        there = [keeper] if when == "die-unmounted" else [keeper, point]
        assert sorted(mount["mountpoint"] for mount in status(world)["mounts"]) == sorted(map(str, there))
        assert status(world)["worker_restarts"] == 1
        assert len(mounts_below(point)) == len(there) - 1
        for path in there:
            assert (path / NAME).read_bytes() == content(NAME)


def test_the_last_unmount_ends_a_daemon_whose_worker_was_replaced(reading_world: World) -> None:
    world = reading_world
    point = world.mount()
    pid = worker(world)
    kill(pid)
    another(world, pid)
    world.umount(point)
    wait_until(lambda: world.pids() == [], "the daemon to end", 20)
    assert mounts_below(world.root) == []


@pytest.mark.parametrize("victim", ["pid", "worker_pid"])
def test_sigterm_to_either_ends_everything(reading_world: World, victim: str) -> None:
    world = reading_world
    point = world.mount()
    kill(status(world)[victim], signal.SIGTERM)
    wait_until(lambda: world.pids() == [], "the daemon to end", 20)
    assert mounts_below(world.root) == []
    assert os.listdir(point) == []  # noqa: PTH208
    assert '"worker_died"' not in world.logs()
