"""Leases of real processes: killed, replaced, stopped, on stores of both kinds and on one that may only be read."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.store.leases import MARGIN, WRITER_LIFE, LeaseInfo, leases
from imagefs.store.opening import open_store
from tests.system.world import World, end, require, wait_until
from tests.weed import serving


def held(world: World, *, later: float = 0.0) -> list[LeaseInfo]:
    """Return the leases that count in a world's store, so many seconds from now."""
    store = open_store(world.env["IMAGEFS_STORE"])
    try:
        return leases(store, clock=lambda: time.time() + later)
    finally:
        store.close()


def named(world: World) -> list[list[str]]:
    return [lease.document.manifests for lease in held(world) if lease.document is not None]


@pytest.fixture
def source(imagefs: World) -> str:
    folder = imagefs.root / "source"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(range(256)) * 1000)
    return f"dir:{folder}"


@pytest.fixture
def large(imagefs: World) -> str:
    """What takes a while to convert."""
    folder = imagefs.root / "large"
    folder.mkdir()
    for number in range(400):
        (folder / str(number)).write_bytes(os.urandom(200_000))
    return f"dir:{folder}"


def test_a_conversion_that_is_killed_leaves_a_lease_that_ends(imagefs: World, source: str, large: str) -> None:
    imagefs.convert(source)
    assert held(imagefs) == []
    process = imagefs.start("convert", large, "other")
    wait_until(lambda: bool(held(imagefs)), "the lease")
    assert end(process) == -signal.SIGKILL
    (left,) = held(imagefs)
    assert left.document is not None
    assert (left.document.kind, left.uses_all) == ("convert", True)
    imagefs.convert(source)
    assert [lease.name for lease in held(imagefs)] == [left.name]
    assert held(imagefs, later=WRITER_LIFE + MARGIN + 30) == []


def test_a_conversion_that_is_ended_leaves_none(imagefs: World, source: str, large: str) -> None:
    imagefs.convert(source)
    process = imagefs.start("convert", large, "other")
    wait_until(lambda: bool(held(imagefs)), "the lease")
    assert end(process, signal.SIGTERM) != 0
    assert held(imagefs) == []


def test_what_is_mounted_is_named_until_the_daemon_stops(imagefs: World, source: str) -> None:
    require("fuse")
    require("root", "to mount")
    first = imagefs.convert(source)["manifest"]
    point = imagefs.mount()
    wait_until(lambda: named(imagefs) == [[first]], "the lease")
    (imagefs.root / "source/more").write_bytes(b"more" * 100)
    second = imagefs.convert(source, "other")["manifest"]
    assert second != first
    other = imagefs.mount("other", "other")
    wait_until(lambda: named(imagefs) == [sorted([first, second])], "both to be named")
    before = [lease.name for lease in held(imagefs)]
    # The daemon's, not the worker's.
    worker = imagefs.run("daemon", "status", "--json").json["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: imagefs.run("daemon", "status", "--json").json["worker_pid"] != worker, "another worker")
    imagefs.umount(other)
    imagefs.umount(point)
    wait_until(lambda: held(imagefs) == [], "the lease to go")
    imagefs.mount()
    wait_until(lambda: named(imagefs) == [[first]], "the lease")
    assert len(before) == 1
    imagefs.run("daemon", "stop")
    wait_until(lambda: held(imagefs) == [], "the lease to go")


def test_the_next_daemon_ends_the_lease_of_one_that_was_killed(imagefs: World, source: str) -> None:
    require("fuse")
    require("root", "to mount")
    manifest = imagefs.convert(source)["manifest"]
    imagefs.mount()
    wait_until(lambda: named(imagefs) == [[manifest]], "the lease")
    (left,) = held(imagefs)
    pids = imagefs.pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not imagefs.pids(), "the daemon to die")
    assert [lease.name for lease in held(imagefs)] == [left.name]
    imagefs.mount(name="again")
    wait_until(lambda: [lease.until > left.until for lease in held(imagefs)] == [True], "it to be gone on with")
    assert [lease.name for lease in held(imagefs)] == [left.name]


@pytest.fixture
def on_s3(imagefs: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, dict[str, str]]]:
    """A world on a real S3 server, and what makes it one that may only read."""
    require("fuse")
    require("root", "to mount")
    with serving(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        imagefs.environment |= server.environment | {"IMAGEFS_STORE": "s3://leases/store", "IMAGEFS_LOG_LEVEL": "info"}
        yield imagefs, server.reading
        assert imagefs.close() == []


def test_on_s3(on_s3: tuple[World, dict[str, str]], source: str) -> None:
    world, reading = on_s3
    manifest = world.convert(source)["manifest"]
    assert held(world) == []
    point = world.mount()
    wait_until(lambda: named(world) == [[manifest]], "the lease")
    world.umount(point)
    wait_until(lambda: held(world) == [], "the lease to go")
    wait_until(lambda: not world.pids(), "the daemon to end")
    world.environment |= reading
    point = world.mount()
    wait_until(lambda: world.logs().count('"lease_not_written"') == 1, "it to be told")
    assert (point / "file").stat().st_size == 256_000
    world.umount(point)
    assert held(world) == []
