"""Another worker takes over from one that lives: asked for, with newer code, under load, and with what the old one knew."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.handover import InBackground, Orders, another, check, children, daemon, kill, status, worker
from tests.system.readers import content, load
from tests.system.world import World, end, mounts_below, wait_until

RELOADS: Final = 6
NAME: Final = "large/4"


@pytest.mark.parametrize("how", ["command", "SIGHUP"])
def test_reload_under_load(reading_world: World, how: str) -> None:
    world = reading_world
    point = world.mount()
    pid = worker(world)
    supervisor = status(world)["pid"]
    with load(point) as under_way:
        for _ in range(RELOADS):
            if how == "command":
                told = world.run("daemon", "reload", "--json").json
                assert told["pid"] == supervisor
                assert told["worker_pid"] not in {pid, None}
                assert status(world)["worker_pid"] == told["worker_pid"]
            else:
                kill(supervisor, signal.SIGHUP)
            pid = another(world, pid)
        seen = under_way.stop()
    longest = check(seen)
    print(f"\n{RELOADS} reloads by {how}, {sum(one['reads'] for one in seen)} operations, longest {longest:.3f} s")
    assert longest < 5
    found = status(world)
    assert (found["worker_restarts"], found["crash"], found["pid"]) == (RELOADS, None, supervisor)
    logs = world.logs()
    assert '"worker_killed"' not in logs
    assert logs.count('"reason": "drain"') == RELOADS
    assert (point / NAME).read_bytes() == content(NAME)


def test_a_read_that_takes_long_does_not_hold_up_a_reload(reading_world: World, tmp_path: Path) -> None:
    """It is given up, and done by the next worker."""
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)):
        point = world.mount()
        with orders.given("slow"):
            read = InBackground((point / NAME).read_bytes)
            wait_until(lambda: orders.is_there("asked"), "the store to be asked")
            begun = time.monotonic()
            world.run("daemon", "reload")
            assert time.monotonic() - begun < 10
            assert read.is_alive()
        assert read.outcome(20) == content(NAME)


def test_code_that_cannot_be_loaded_changes_nothing(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)) as supervisor:
        point = world.mount()
        pid = worker(world)
        with orders.given("refuse"):
            done = world.attempt("daemon", "reload", "--json")
            assert done.status == 11
            assert "the new worker cannot be used: it ended with status 1" in done.json["error"]["message"]
            kill(supervisor.pid, signal.SIGHUP)
            wait_until(lambda: world.logs().count('"reload_failed"') == 2, "the second to fail")
        assert "half an update" in world.logs()
        assert (worker(world), status(world)["worker_restarts"]) == (pid, 0)
        assert (point / NAME).read_bytes() == content(NAME)
        world.run("daemon", "reload")
        assert worker(world) != pid


def test_a_worker_that_dies_during_a_reload_is_followed_by_the_new_one(reading_world: World, tmp_path: Path) -> None:
    world, orders = reading_world, Orders(tmp_path / "orders")
    with daemon(world, command=orders.command(world)) as supervisor:
        point = world.mount()
        pid = worker(world)
        kill(supervisor.pid, signal.SIGHUP)
        kill(pid)
        pid = another(world, pid)
        assert (point / NAME).read_bytes() == content(NAME)
        wait_until(lambda: len(Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()) == 2, "one worker")
        assert (point / "small/001").read_bytes() == content("small/001")


def test_reload_without_a_daemon_says_so(reading_world: World) -> None:
    done = reading_world.attempt("daemon", "reload")
    assert done.status == 11
    assert "no daemon is running" in done.err


_HOLD: Final = "import sys; f = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.readline(); sys.stdout.buffer.write(f.read())"


def small_image(world: World, ref: str) -> None:
    folder = world.root / f"{ref}-source"
    folder.mkdir()
    (folder / "file").write_bytes(b"more" * 5000)
    world.run("convert", f"dir:{folder}", ref, "--json")


@pytest.mark.parametrize("how", ["reload", "kill"])
@pytest.mark.parametrize("first", ["unmount", "replace"])
def test_files_left_open_by_a_lazy_unmount_outlive_a_worker(reading_world: World, how: str, first: str) -> None:
    world = reading_world
    small_image(world, "keeper")
    keeper, point = world.mount("keeper", "keeper"), world.mount()

    def replace() -> None:
        pid = worker(world)
        if how == "reload":
            world.run("daemon", "reload")
        else:
            kill(pid)
        another(world, pid)

    with subprocess.Popen([sys.executable, "-c", _HOLD, point / NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        if first == "replace":
            replace()
        world.run("umount", str(point), "--lazy")
        assert mounts_below(point) == []
        if first == "unmount":
            replace()
        # As long as it takes to look twice who uses what.
        time.sleep(5)
        out, _ = user.communicate(b"\n", timeout=30)
    assert out == content(NAME)
    if how == "reload":
        # It was counted: with its last file the image goes.
        shown = next(world.runtime.glob("*/fuse")) / "trees"
        wait_until(lambda: len(os.listdir(shown)) == 1, "the image to be let go of")  # noqa: PTH208
    world.umount(keeper)
    wait_until(lambda: world.pids() == [], "the daemon to end", 20)


def test_a_daemon_waits_for_files_left_open_also_after_a_reload(reading_world: World) -> None:
    world = reading_world
    point = world.mount()
    with subprocess.Popen([sys.executable, "-c", _HOLD, point / NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        world.run("daemon", "reload")
        assert '"stopping": false' in world.run("umount", str(point), "--lazy", "--json").out
        assert mounts_below(point) == []
        time.sleep(8)
        out, _ = user.communicate(b"\n", timeout=30)
        assert out == content(NAME)
    wait_until(lambda: world.pids() == [], "the daemon to end after the last file was closed", 20)


def named(mount: dict[str, Any]) -> dict[str, Any]:
    """What a mount is, without what a worker does with it: recording ends with the worker."""
    return {key: value for key, value in mount.items() if key not in {"recording", "watched", "recording_reason"}}


def test_images_and_inode_numbers_are_the_same(reading_world: World) -> None:
    world = reading_world
    small_image(world, "more")
    points = [world.mount(), world.mount("more", "second")]
    before = [sorted((path.name, path.stat().st_ino) for path in point.rglob("*")) for point in points]
    mounts = status(world)["mounts"]
    for _ in range(2):
        pid = worker(world)
        kill(pid)
        another(world, pid)
        assert [sorted((path.name, path.stat().st_ino) for path in point.rglob("*")) for point in points] == before
        assert [named(mount) for mount in status(world)["mounts"]] == [named(mount) for mount in mounts]
    world.umount(points[1])
    # A slot is not given to another image while the kernel may remember what was there.
    again = world.mount("more", "third")
    assert (again / "file").stat().st_ino >> 40 > (points[0] / NAME).stat().st_ino >> 40
    assert os.listdir(again) == ["file"]  # noqa: PTH208


def test_a_worker_takes_over_without_the_store(reading_world: World) -> None:
    world = reading_world
    store = world.root / "store"
    subprocess.run(["cp", "-a", world.environment["IMAGEFS_STORE"].removeprefix("file://"), store], check=True)
    world.environment |= {"IMAGEFS_STORE": f"file://{store}", "IMAGEFS_STORE_DEADLINE": "3"}
    point = world.mount()
    assert (point / "large/1").read_bytes() == content("large/1")
    wait_until(lambda: bool(world.run("cache", "status", "--json").json["settled"]), "what was read to be committed")
    store.rename(world.root / "away")
    pid = worker(world)
    kill(pid)
    begun = time.monotonic()
    another(world, pid)
    assert time.monotonic() - begun < 5
    assert (point / "large/1").read_bytes() == content("large/1")
    with pytest.raises(OSError, match="Input/output error"):
        (point / "large/5").read_bytes()


def test_a_damaged_index_costs_a_moment_when_the_store_is_there(reading_world: World) -> None:
    world = reading_world
    small_image(world, "more")
    point, fine = world.mount(), world.mount("more", "second")
    manifest = world.run("inspect", "test", "--json").json
    for path in (world.cache / "index").iterdir():
        data = bytearray(path.read_bytes())
        if path.name in {manifest["digest"], manifest["manifest"]["tree"]["digest"]}:
            # Another file in its place: the old worker has this one mapped.
            data[len(data) // 2] ^= 1
            path.unlink()
            path.write_bytes(data)
    pid = worker(world)
    kill(pid)
    another(world, pid)
    assert (fine / "file").read_bytes() == b"more" * 5000

    def is_back() -> bool:
        try:
            return (point / NAME).read_bytes() == content(NAME)
        except OSError:
            return False

    wait_until(is_back, "the image to be brought again", 20)
    assert "image_not_restored" in world.logs()


def test_a_cache_that_was_taken_away_leaves_a_worker_without_it(reading_world: World) -> None:
    world = reading_world
    point = world.mount()
    world.cache.chmod(0o777)
    pid = worker(world)
    kill(pid)
    another(world, pid)
    assert (point / NAME).read_bytes() == content(NAME)
    assert world.stats()["ssd_present"] == 0
    assert "written by others" in world.logs()
    world.cache.chmod(0o700)
    world.run("daemon", "reload")
    assert world.stats()["ssd_present"] == 1


def _supervisor(world: World) -> tuple[int, float]:
    found = status(world)
    return int(found["pid"]), float(found["started_at"])


@pytest.mark.parametrize("how", ["in the background", "in the foreground"])
def test_the_supervisor_is_replaced_too_without_a_service_manager(reading_world: World, how: str) -> None:
    world = reading_world
    foreground = None
    if how == "in the foreground":
        foreground = world.start("daemon", "run")
        wait_until(lambda: world.attempt("daemon", "status").status == 0, "the daemon", 30)
    point = world.mount()
    pid, since = _supervisor(world)
    before = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    with load(point, ("pread", "open")) as under_way:
        # More than once: what it has become can do it again.
        for number in (1, 2):
            world.run("daemon", "reload", "--supervisor")
            assert _supervisor(world)[0] == pid
            assert status(world)["worker_restarts"] == 2 * number
        seen = under_way.stop()
    check(seen)
    assert _supervisor(world)[1] > since
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == before
    assert len(children(pid)) == 2, "a worker, and what the next one is forked from"
    assert [mount["mountpoint"] for mount in status(world)["mounts"]] == [str(point)]
    assert (point / NAME).read_bytes() == content(NAME)
    if foreground is None:
        world.umount(point)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon to end with its last mount", 20)
    else:
        assert end(foreground, signal.SIGTERM) == 0
    assert mounts_below(world.root) == []
