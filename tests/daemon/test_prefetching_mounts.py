"""Prefetching through the daemon: what is published for an image is here before it is read, and what goes wrong with it harms nothing."""

import os
import signal
import time
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.errors import NotFoundError
from imagefs.format.profile import EVERY_START, Access, Key, Profile
from imagefs.store import profiles
from imagefs.store.base import pack_key
from tests.daemon.place import Place
from tests.fuse.images import FRAME, noise
from tests.system.world import wait_until

FILES = {f"file{number}": noise(3 * FRAME + number, number) for number in range(6)}
READ = list(FILES)[:4]
"""What the profile names."""


@pytest.fixture
def image(place: Place) -> str:
    """An image of six files, of which a profile names four."""
    maker = place.maker()
    for name, data in FILES.items():
        maker.file(name, data)
    manifest = maker.publish()
    publish(place, manifest)
    return manifest


def publish(place: Place, manifest: str, label: str = "") -> None:
    accesses = [Access(digest_of(FILES[name]), 0, 1 << 20, 10 * number, EVERY_START) for number, name in enumerate(READ)]
    profiles.publish(place.store, Profile(manifest, Key(label=label), 1, accesses))


def named() -> int:
    return sum(len(FILES[name]) for name in READ)


def test_a_mount_brings_what_the_profile_names_and_nothing_else(place: Place, image: str) -> None:
    point = place.mountpoint()
    result = client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    assert result["prefetched"] == 1.0
    stats = client.stats(place.config)
    assert stats["profile_bytes"] == named()
    for name in READ:
        assert (point / name).read_bytes() == FILES[name]
    after = client.stats(place.config)
    assert after["store_gets"] == stats["store_gets"]
    assert after["bytes_read"]["store"] == 0
    assert after["profile_used_bytes"] == named()
    assert (point / "file5").read_bytes() == FILES["file5"]
    assert image


def test_who_wants_no_prefetch_gets_none(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", prefetch=False)
    assert (point / READ[0]).read_bytes() == FILES[READ[0]]
    stats = client.stats(place.config)
    assert stats["profile_bytes"] == 0
    assert image


def test_the_host_keeps_the_profile_and_uses_it_without_the_store(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    client.umount(place.config, point)
    assert (place.config.cache / "profiles" / image).exists()
    for name in list((place.root / "store/profiles").rglob("*")):
        if name.is_file():
            name.unlink()
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    client.call(place.config, "cache", action="clear")
    client.umount(place.config, point)
    assert client.mount(place.config, mountpoint=point, ref="test", wait=1.0)["prefetched"] == 1.0
    assert client.stats(place.config)["profile_bytes"] == named()


def test_a_host_is_made_warm_without_a_mount(place: Place, image: str) -> None:
    done = client.prefetch(place.config, ref="test", wait=True)
    assert (done["manifest"], done["prefetched"], done["profile_bytes"]) == (image, 1.0, named())
    assert place.mounted() == [] or all("fuse" in mount for mount in place.mounted())
    wait_until(lambda: not client.running(place.config), "the daemon that nobody needs any more to end")
    # All of it is on SSD: it is read with no store there.
    (place.root / "store").rename(place.root / "away")
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, manifest=image)
    for name in READ:
        assert (point / name).read_bytes() == FILES[name]
    client.umount(place.config, point)
    (place.root / "away").rename(place.root / "store")


def test_prefetching_what_there_is_not_is_an_error(place: Place) -> None:
    with pytest.raises(NotFoundError):
        client.prefetch(place.config, ref="nothing", wait=True)


def test_an_image_without_a_profile_is_mounted_and_made_warm_all_the_same(place: Place) -> None:
    maker = place.maker()
    maker.file("file", FILES["file0"])
    maker.publish("plain:1")
    done = client.prefetch(place.config, ref="plain:1", wait=True)
    assert (done["prefetched"], done["profile_bytes"]) == (1.0, 0)
    point = place.mountpoint()
    begun = time.monotonic()
    client.mount(place.config, mountpoint=point, ref="plain:1", wait=1.0)
    assert time.monotonic() - begun < 5
    assert (point / "file").read_bytes() == FILES["file0"]


def test_an_image_that_was_rebuilt_prefetches_what_it_shares_at_its_first_start(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    client.call(place.config, "cache", action="clear")
    client.umount(place.config, point)
    maker = place.maker()
    for name, data in (FILES | {READ[3]: noise(FRAME, 99)}).items():
        maker.file(name, data)
    other = maker.publish()
    assert other != image
    result = client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    assert (result["manifest"], result["prefetched"]) == (other, 1.0)
    assert client.stats(place.config)["profile_bytes"] == sum(len(FILES[name]) for name in READ[:3])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_damaged_profiles_harm_nothing(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    client.umount(place.config, point)
    damage(place.config.cache / "profiles" / image)
    for path in (place.root / "store/profiles").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"{")
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    for name, data in FILES.items():
        assert (point / name).read_bytes() == data


def test_a_pack_that_is_gone_fails_who_reads_it_and_nobody_waits_for_it(place: Place, image: str) -> None:
    maker_pack = max((place.root / "store/packs").rglob("*"), key=lambda path: path.stat().st_mtime if path.is_file() else 0)
    maker_pack.rename(place.root / "pack")
    assert pack_key(maker_pack.name)
    point = place.mountpoint()
    begun = time.monotonic()
    client.mount(place.config, mountpoint=point, ref="test", wait=1.0)
    assert time.monotonic() - begun < 15
    good = bad = 0
    for name, data in FILES.items():
        try:
            assert (point / name).read_bytes() == data
            good += 1
        except OSError:
            bad += 1
    assert (good, bad) == (5, 1)
    assert image


def test_a_worker_that_is_killed_leaves_readers_with_the_right_bytes(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, ref="test")
    os.kill(client.status(place.config)["worker_pid"], signal.SIGKILL)
    for name, data in FILES.items():
        assert (point / name).read_bytes() == data
    # A mount in the next worker begins anew: what that one went on with has met readers who came first, and may be doubted.
    client.umount(place.config, point)
    other = place.mountpoint("other")
    assert client.mount(place.config, mountpoint=other, ref="test", wait=1.0)["prefetched"] == 1.0
    assert image


@pytest.mark.parametrize("wanted", [True, False])
def test_the_next_worker_goes_on_with_a_start_if_that_was_wanted(place: Place, image: str, wanted: bool) -> None:
    point, keeper = place.mountpoint(), place.mountpoint("keeper")
    client.mount(place.config, mountpoint=keeper, ref="test", wait=1.0)
    client.umount(place.config, keeper) if wanted else None
    client.mount(place.config, mountpoint=point, ref="test", prefetch=wanted)
    client.umount(place.config, keeper) if not wanted else None
    # As if it had been killed before anything had come.
    client.call(place.config, "cache", action="clear")
    os.kill(client.status(place.config)["worker_pid"], signal.SIGKILL)
    if wanted:
        # What the one before was still bringing when it was killed need not come twice.
        wait_until(lambda: client.stats(place.config)["objects_complete"] == len(READ), "what the profile names to come again")
    else:
        (point / READ[0]).read_bytes()
        assert client.stats(place.config)["profile_bytes"] == 0
    assert image


def test_an_unmount_in_the_middle_ends_it(place: Place, image: str) -> None:
    point = place.mountpoint()
    keeper = place.mountpoint("keeper")
    maker = place.maker()
    maker.file("file", b"x" * 100)
    maker.publish("keeper:1")
    client.mount(place.config, mountpoint=keeper, ref="keeper:1")
    client.mount(place.config, mountpoint=point, ref="test")
    client.umount(place.config, point)
    wait_until(lambda: client.stats(place.config)["prefetches"] == 0, "the prefetch to end")
    wait_until(lambda: client.stats(place.config)["gets_in_flight"] == 0, "what is under way to come")
    assert image


def test_the_whole_image_comes_where_that_is_wanted(place: Place, image: str) -> None:
    place.complete_bytes_per_second = 1 << 30
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, manifest=image)
    wait_until(lambda: client.stats(place.config)["objects_complete"] == len(FILES), "all of it to be here")
    (place.root / "store").rename(place.root / "away")
    for name, data in FILES.items():
        assert (point / name).read_bytes() == data
    (place.root / "away").rename(place.root / "store")
