"""The SSD tier through the front door: the real command, real mounts, restarts, a store that is gone, damage, eviction."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.world import DEADLINE, World, detach, end, require, tool, wait_until

MIB = 1 << 20


def noise(size: int, seed: int) -> bytes:
    return b"".join(seed.to_bytes(4, "little") + number.to_bytes(4, "little") * 3 for number in range(size // 16 + 1))[:size]


FILES = {"big": noise(9 * MIB + 5, 1), "medium": noise(1_500_000, 2), **{f"small/{n}": noise(3000 + n, 100 + n) for n in range(50)}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    require("root", "mounts through /dev/fuse as root")
    made = World(tmp_path / "w")
    source = made.root / "source"
    for name, data in FILES.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    made.convert(f"dir:{source}")
    yield made
    assert made.close() == []


def read_all(point: Path) -> None:
    for name, data in FILES.items():
        assert (point / name).read_bytes() == data, name


def kept(world: World) -> list[Path]:
    """Return the files of the tier."""
    return [path for folder in ("objects", "frames", "partial") for path in (world.cache / folder).rglob("*") if path.is_file()]


def settled(world: World) -> None:
    """Wait until what was read is on the disk."""
    wait_until(lambda: bool(world.run("cache", "status", "--json").json["settled"]), "what was read to be committed")


def test_a_host_mounts_again_and_serves_with_the_store_gone(world: World) -> None:
    world.environment["IMAGEFS_STORE_DEADLINE"] = "2"
    point = world.mount()
    for name in ("big", "small/7"):
        assert (point / name).read_bytes() == FILES[name]
    settled(world)
    world.umount(point)
    away = world.store.rename(world.root / "away")
    point = world.mount()
    assert (point / "big").read_bytes() == FILES["big"]
    assert (point / "small/8").read_bytes() == FILES["small/8"], "it came with small/7"
    assert os.getxattr(point / "big", "user.imagefs.tier") in {b"ssd", b"ram"}
    stats = world.stats()
    assert stats["store_gets"] == 0
    assert stats["bytes_read"]["ssd"] > 0
    with pytest.raises(OSError, match="Input/output error"):
        (point / "medium").read_bytes()
    assert (point / "big").stat().st_size == len(FILES["big"])
    away.rename(world.store)

    def is_back() -> bool:
        try:
            return (point / "medium").read_bytes() == FILES["medium"]
        except OSError:
            return False

    wait_until(is_back, "the store to be used again", 30)
    read_all(point)


def test_what_was_never_mounted_here_is_not_there_without_the_store(world: World) -> None:
    shutil.rmtree(world.store)
    point = world.root / "mnt"
    point.mkdir()
    done = world.attempt("mount", "test", str(point), "--json")
    assert done.status == 7
    assert "no store at" in done.json["error"]["message"]


def test_a_ref_that_is_removed_is_not_mounted_from_memory(world: World) -> None:
    world.umount(world.mount())
    world.run("rm", "test")
    point = world.root / "mnt"
    done = world.attempt("mount", "test", str(point), "--json")
    assert done.status == 6


def test_a_second_daemon_on_one_cache_is_refused_with_the_first_ones_pid(world: World) -> None:
    point = world.mount()
    pid = world.run("daemon", "status", "--json").json["worker_pid"]
    other = world.root / "other"
    done = world.attempt("mount", "test", str(other), "--store", str(world.root / "otherstore"), "--json")
    assert done.status == 11
    assert f"process {pid}" in done.json["error"]["message"]
    assert (point / "medium").read_bytes() == FILES["medium"]


@pytest.mark.parametrize("running", [True, False], ids=["daemon", "no-daemon"])
def test_the_cache_commands(world: World, running: bool) -> None:
    point = world.mount()
    read_all(point)
    settled(world)
    if not running:
        world.umount(point)
    status = world.run("cache", "status", "--json").json
    assert status["bytes"] >= sum(map(len, FILES.values()))
    assert status["pins"] == []
    assert "files" in world.run("cache", "status").out
    assert world.run("cache", "verify", "--json").json == {
        "files": status["complete_files"],
        "bytes": sum(path.stat().st_size for path in kept(world)),
        "bad": 0,
    }
    assert world.run("cache", "pin", "test", "--json").json["changed"] is True
    assert [pin["ref"] for pin in world.run("cache", "status", "--json").json["pins"]] == ["test"]
    assert world.run("cache", "clear", "--json").json["freed_bytes"] == 0
    assert world.attempt("cache", "unpin", "nothing", "--json").status == 6
    assert world.run("cache", "unpin", "test", "--json").json["changed"] is True
    assert world.run("cache", "evict", "--bytes", "1MiB", "--json").json["freed_bytes"] >= MIB
    left = world.run("cache", "status", "--json").json["bytes"]
    assert world.run("cache", "evict", "test", "--json").json["freed_bytes"] == left < status["bytes"]
    assert world.run("cache", "status", "--json").json["bytes"] == 0
    assert kept(world) == []
    changed = world.run("cache", "limit", "--size", "100MiB", "--floor", "0", "--json").json
    assert (changed["limit_bytes"], changed["floor_bytes"]) == (100 * MIB, 0)
    sizes = [["limit", "--size", size] for size in ("much", "200", "1MiB")]
    for wrong in (["evict"], ["limit"], *sizes, ["limit", "--floor", "-1"], ["evict", "--bytes", "x"]):
        assert world.attempt("cache", *wrong).status == 2
    assert world.run("cache", "status", "--json").json["limit_bytes"] == (100 * MIB if running else 0)
    if running:
        read_all(point)
        return
    point = world.mount()
    read_all(point)
    settled(world)
    world.umount(point)
    world.run("cache", "pin", "test")
    assert world.run("cache", "clear", "--pinned", "--json").json["freed_bytes"] > 0
    assert kept(world) == []


def test_damage_at_rest_is_never_served_and_healed(world: World) -> None:
    point = world.mount()
    read_all(point)
    settled(world)
    world.umount(point)
    damaged = 0
    for path in sorted((world.cache / "objects").rglob("*")) + sorted((world.cache / "frames").rglob("*")):
        if path.is_file():
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 0x10]))
            damaged += 1
    assert damaged >= 3
    point = world.mount()
    read_all(point)
    stats = world.stats()
    assert stats["verify_failures"] >= damaged
    assert stats["store_gets"] > 0
    assert "frame_damaged" in world.logs()
    settled(world)
    world.umount(point)
    point = world.mount()
    read_all(point)
    assert world.stats()["verify_failures"] == 0


def test_a_kill_costs_what_was_not_yet_written_and_nothing_else(world: World) -> None:
    point = world.mount()
    pid = world.run("daemon", "status", "--json").json["worker_pid"]
    assert (point / "big").read_bytes() == FILES["big"]
    settled(world)
    wait_until(lambda: world.stats()["objects_complete"] >= 1, "the object to be complete")
    (point / "medium").read_bytes()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon to be gone")
    point = world.mount(name="again")
    read_all(point)
    frames = -(-len(FILES["medium"]) // (256 << 10))
    assert world.stats()["frames_fetched"] <= frames + 1, "all but what was read last was kept"
    assert world.run("cache", "verify", "--json").json["bad"] == 0


def test_bounds_hold_while_files_are_read_and_open_files_stay_readable(world: World) -> None:
    world.environment["IMAGEFS_CACHE_BYTES"] = "64MiB"
    point = world.mount()
    with (point / "big").open("rb") as file:
        head = file.read(MIB)
        settled(world)
        world.run("cache", "limit", "--size", "4MiB")
        wait_until(lambda: world.run("cache", "status", "--json").json["bytes"] <= 4 * MIB, "the eviction")
        assert head + file.read() == FILES["big"]
    read_all(point)
    world.run("cache", "limit", "--size", "0", "--floor", "1000TiB")
    wait_until(lambda: world.run("cache", "status", "--json").json["bytes"] == 0, "more to be left free than there is")
    read_all(point)


def test_a_cache_on_a_small_full_file_system_is_a_slower_host(world: World) -> None:
    image = world.root / "disk.img"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    disk = world.root / "disk"
    disk.mkdir()
    tool("mkfs.ext4", "-q", "-m", "0", str(image))
    tool("mount", "-o", "loop", str(image), str(disk))
    try:
        world.cache = disk / "cache"
        world.environment["IMAGEFS_CACHE_FLOOR"] = "0"
        point = world.mount()
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, room - 2 * MIB)))
        read_all(point)
        read_all(point)
        wait_until(lambda: world.stats()["ssd_write_errors"] > 0, "the disk to be found full")
        (disk / "filler").unlink()
        read_all(point)
        world.umount(point)
    finally:
        detach(disk)


def test_a_cache_directory_that_must_not_be_used_is_refused(world: World) -> None:
    point = world.root / "mnt"
    point.mkdir()
    foreign = world.root / "foreign"
    foreign.mkdir()
    (foreign / "letters").write_text("mine")
    done = world.attempt("mount", "test", str(point), "--cache", str(foreign), "--json")
    assert (done.status, "not a cache" in done.json["error"]["message"]) == (2, True)
    assert [path.name for path in foreign.iterdir()] == ["letters"]
    open_to_all = world.root / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    done = world.attempt("mount", "test", str(point), "--cache", str(open_to_all), "--json")
    assert (done.status, "written by others" in done.json["error"]["message"]) == (12, True)
    done = world.attempt("cache", "status", "--cache", str(foreign), "--json")
    assert done.status == 2


def test_a_foreground_daemon_says_who_has_the_cache(world: World) -> None:
    daemon = world.start("daemon", "run")
    try:
        wait_until(lambda: world.attempt("daemon", "status").status == 0, "the daemon")
        status = world.run("daemon", "status", "--json").json
        assert status["pid"] == daemon.pid
        done = world.attempt("daemon", "run", "--store", str(world.root / "x"), seconds=DEADLINE)
        assert done.status == 11
        assert str(status["worker_pid"]) in done.err
    finally:
        end(daemon, signal.SIGTERM)
    assert json.loads(world.run("cache", "status", "--json").out)["bytes"] == 0
