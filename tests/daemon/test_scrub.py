"""A byte that goes bad on the disk, in kernel mode: found, withdrawn, fetched again; and never served after the machine has stopped."""

import os
import time
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.mount.bind import unmount
from tests.cache.tierbench import flip
from tests.daemon.place import Place
from tests.fuse.images import noise
from tests.system.world import wait_until

BIG = noise(3_000_000, 1)
SMALL = {f"small/{number}": noise(200 + 41 * number, number) for number in range(30)}
FILES = {"big": BIG} | SMALL
QUICK = 2 / 86400
"""Days: all of the cache every two seconds."""


def _publish(place: Place) -> str:
    maker = place.maker()
    maker.file("big", BIG)
    maker.shared(SMALL)
    return maker.publish("test:latest")


def _mount(place: Place, manifest: str, name: str = "mnt") -> Path:
    path = place.mountpoint(name)
    client.mount(place.config, mountpoint=path, manifest=manifest, mode="kernel")
    return path


def _object(place: Place, name: str, folder: str = "objects") -> Path:
    digest = digest_of(FILES[name]).hex()
    return place.config.cache / folder / digest[:2] / digest[2:]


def _all_local(place: Place) -> bool:
    return all(_object(place, name).exists() for name in FILES)


def _become_native(place: Place, path: Path) -> None:
    """Wait until all of it is on SSD, and the kernel has nothing else of it."""

    def is_native() -> bool:
        # Who opens all of it again and again keeps the mount from being settled.
        time.sleep(1.5)
        before = _requests(place)
        _read_all(path)
        return _requests(place) == before

    wait_until(lambda: _all_local(place), "all objects to be on SSD")
    wait_until(is_native, "the mount to look anew", 40)


def _read_all(path: Path) -> None:
    for name, data in FILES.items():
        assert (path / name).read_bytes() == data, name


def _is_right_after_a_pause(path: Path, name: str) -> bool:
    """Read a file, but not all the time: as long as somebody has it open, the mount does not look anew."""
    time.sleep(0.5)
    return (path / name).read_bytes() == FILES[name]


def _requests(place: Place) -> int:
    counts: dict[str, int] = client.stats(place.config)["fuse_requests"]
    return sum(counts.values())


@pytest.mark.parametrize("name", ["big", "small/7"])
def test_a_byte_that_goes_bad_is_found_and_healed(place: Place, name: str) -> None:
    place.scrub_days = QUICK
    path = _mount(place, _publish(place))
    _read_all(path)
    _become_native(place, path)
    bad = _object(place, name)
    inode = bad.stat().st_ino
    flip(bad, 150)
    assert (path / name).read_bytes() != FILES[name], "the kernel verifies nothing: it is this that has to be found"
    wait_until(lambda: bool(client.stats(place.config)["ssd_withdrawn_files"]), "the scrubber to find it")
    wait_until(lambda: bad.exists() and bad.stat().st_ino != inode, "it to be fetched again")
    assert bad.read_bytes() == FILES[name]
    wait_until(lambda: _is_right_after_a_pause(path, name), "the mount to look anew")
    _become_native(place, path)
    stats = client.stats(place.config)
    assert (stats["ssd_withdrawn_files"], stats["ssd_damaged_files"]) == (1, 1)
    assert stats["ssd_scrubbed_files"] > len(FILES)
    assert stats["ssd_scrub_late_seconds"] < 20
    log = place.log()
    assert log.count('"object_damaged"') == log.count('"object_fetched_again"') == 1, log
    assert log.count(digest_of(FILES[name]).hex()) >= 2


def test_what_is_found_bad_by_a_read_leaves_the_kernel_too(place: Place) -> None:
    place.scrub_days = 0
    manifest = _publish(place)
    path = _mount(place, manifest)
    _read_all(path)
    _become_native(place, path)
    plain = place.mountpoint("plain")
    client.mount(place.config, mountpoint=plain, manifest=manifest, mode="fuse")
    # With another worker, what RAM had is gone.
    worker = int(client.status(place.config)["worker_pid"])
    os.kill(worker, 9)
    wait_until(lambda: client.status(place.config)["worker_pid"] != worker, "another worker")
    assert _all_local(place), "the machine has not stopped"
    flip(_object(place, "big"), 150)
    wait_until(lambda: (plain / "big").read_bytes() == BIG, "never anything else here")
    wait_until(lambda: _is_right_after_a_pause(path, "big"), "the kernel to look anew")


def test_after_the_machine_has_stopped_nothing_is_served_unverified(place: Place) -> None:
    place.scrub_days = 0
    manifest = _publish(place)
    path = _mount(place, manifest)
    _read_all(path)
    _become_native(place, path)
    place.kill()
    for left in reversed(place.mounted()):
        unmount(Path(left), lazy=True)
    for name in ("big", "small/7", "small/8"):
        flip(_object(place, name), 150)
    (place.config.cache / "unclean").write_text("another start of the machine")
    again = _mount(place, manifest, "again")
    _read_all(again)
    wait_until(lambda: not client.stats(place.config)["ssd_suspect"], "all to be verified")
    _read_all(again)
    wait_until(lambda: _all_local(place), "what was bad to be fetched again")
    for name, data in FILES.items():
        assert _object(place, name).read_bytes() == data
    stats = client.stats(place.config)
    assert stats["ssd_cleared_files"] == len(FILES) - 3
    assert not (place.config.cache / "suspect").exists()
    _become_native(place, again)
