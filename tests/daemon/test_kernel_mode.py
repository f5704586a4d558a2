"""Kernel mode through the daemon: real mounts, and how many requests reach it."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.errors import MountError, UsageError
from imagefs.mount.mountinfo import mount_at
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import require as require_feature
from tests.system.world import wait_until

BIG = noise(3_000_000, 1)
SMALL = {f"small/{number}": noise(100 + 41 * number, number) for number in range(60)}
FILES = {"big": BIG, "inline": b"in the tree\n", "empty": b""} | SMALL


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_feature("root", "mounts as root")
    found = Place(tmp_path / "place")
    yield found
    assert found.close() == []


def _publish(place: Place, ref: str = "test:latest", more: dict[str, bytes] | None = None) -> str:
    maker = place.maker()
    maker.file("big", BIG)
    maker.file("inline", FILES["inline"])
    maker.file("empty", b"")
    maker.shared(SMALL | (more or {}))
    maker.file("bin/dash", Path("/bin/dash").read_bytes(), mode=0o755)
    return maker.publish(ref)


def _mount(place: Place, manifest: str, name: str = "mnt", **options: str | bool) -> Path:
    path = place.mountpoint(name)
    result = client.mount(place.config, mountpoint=path, manifest=manifest, mode="kernel", **options)  # type: ignore[arg-type] # see mypy#1969
    assert result["mode"] == "kernel"
    return path


def _read_all(path: Path) -> None:
    for name, data in FILES.items():
        assert (path / name).read_bytes() == data


def _requests(place: Place) -> int:
    counts: dict[str, int] = client.stats(place.config)["fuse_requests"]
    return sum(counts.values())


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")  # pages only: what makes the kernel look anew is what is tested


def _local(place: Place) -> bool:
    folder = place.config.cache / "objects"
    return all((folder / (name := digest_of(data).hex())[:2] / name[2:]).exists() for data in FILES.values() if len(data) > 64)


def _become_native(place: Place, path: Path) -> None:
    """Wait until the mount asks the daemon for nothing that was read before."""

    def is_native() -> bool:
        # Who opens all of it again and again keeps the mount from being settled: that waits for a second without.
        time.sleep(1.5)
        before = _requests(place)
        _drop_caches()
        _read_all(path)
        return _requests(place) == before

    def is_local() -> bool:
        # A worker that died has taken along what had not landed, and the kernel does not ask for it again as long as it has it.
        _drop_caches()
        _read_all(path)
        return _local(place)

    wait_until(is_local, "all objects to be on SSD")
    wait_until(is_native, "the mount to look anew", 40)


def test_the_mount_of_a_cold_start_gets_to_where_nothing_is_asked(place: Place) -> None:
    path = _mount(place, _publish(place))
    before = _requests(place)
    _read_all(path)
    assert _requests(place) > before, "it was not local before"
    _become_native(place, path)
    before = _requests(place)
    _drop_caches()
    _read_all(path)
    for folder, _, files in os.walk(path):
        for name in files:
            (Path(folder) / name).lstat()
    assert subprocess.run([path / "bin/dash", "-c", "echo run"], capture_output=True, check=True, timeout=20).stdout == b"run\n"
    client.umount(place.config, path)
    assert mount_at(path) is None


def test_a_new_mount_of_what_is_local_asks_for_nothing(place: Place) -> None:
    manifest = _publish(place)
    first = _mount(place, manifest)
    _read_all(first)
    _become_native(place, first)
    second = _mount(place, manifest, "second")
    before = _requests(place)
    _drop_caches()
    _read_all(second)
    assert _requests(place) == before
    client.umount(place.config, first)
    _read_all(second)


def test_flags_and_source(place: Place) -> None:
    manifest = _publish(place)
    plain, allowed = _mount(place, manifest), _mount(place, manifest, "allowed", dev=True, suid=True)
    entry, other = mount_at(plain), mount_at(allowed)
    assert entry is not None
    assert other is not None
    assert entry.options >= {"ro", "nodev", "nosuid"}
    assert not other.options & {"nodev", "nosuid"}
    assert (entry.fstype, entry.source) == ("overlay", "imagefs")
    with pytest.raises(OSError, match="Read-only"):
        (plain / "new").touch()
    with pytest.raises(MountError, match="already mounted"):
        client.mount(place.config, mountpoint=plain, manifest=manifest)


def test_a_writable_layer(place: Place) -> None:
    manifest = _publish(place)
    upper = place.mountpoint("upper")
    path = _mount(place, manifest, upper=str(upper))
    (path / "big").chmod(0o600)
    (path / "small/0").write_bytes(b"changed")
    (path / "inline").unlink()
    assert (path / "big").read_bytes() == BIG
    client.umount(place.config, path)
    client.mount(place.config, mountpoint=path, manifest=manifest, mode="kernel", upper=str(upper))
    assert (path / "small/0").read_bytes() == b"changed"
    assert not (path / "inline").exists()
    assert (path / "big").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="kernel mode"):
        client.mount(place.config, mountpoint=place.mountpoint("other"), manifest=manifest, mode="fuse", upper=str(upper))


def test_what_is_evicted_is_fetched_again_and_what_is_open_stays(place: Place) -> None:
    path = _mount(place, _publish(place))
    _read_all(path)
    _become_native(place, path)
    with (path / "big").open("rb") as file:
        file.read(10)
        assert client.call(place.config, "cache", action="clear", timeout=30)["freed_bytes"] > 0
        _drop_caches()
        file.seek(2_000_000)
        assert file.read(100) == BIG[2_000_000:2_000_100]
    _read_all(path)


def test_it_outlives_the_worker_and_is_taken_away_after_the_supervisor(place: Place) -> None:
    path = _mount(place, _publish(place))
    _read_all(path)
    worker = int(client.status(place.config)["worker_pid"])
    os.kill(worker, 9)
    wait_until(lambda: client.status(place.config)["worker_pid"] != worker, "another worker")
    _read_all(path)
    _become_native(place, path)
    place.kill()
    _read_all(path)
    client.umount(place.config, path)
    assert mount_at(path) is None
    # The next daemon takes away what is left of the dead one.
    again = _mount(place, _publish(place), "again")
    _read_all(again)


def test_two_images_share_what_is_local(place: Place) -> None:
    one, two = _publish(place, "one:1"), _publish(place, "two:1", {"own": noise(500, 99)})
    first, second = _mount(place, one, "first"), _mount(place, two, "second")
    _read_all(first)
    _become_native(place, first)
    client.umount(place.config, first)
    before = _requests(place)
    _drop_caches()
    _read_all(second)
    assert _requests(place) == before
    assert (second / "own").read_bytes() == noise(500, 99)
