"""The daemon through its client: mounts, errors, recovery, and what is left behind (nothing)."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.errors import DaemonError, IntegrityError, MountError, NotFoundError, StoreError, UsageError
from imagefs.mount.bind import unmount
from imagefs.mount.mountinfo import mount_at
from imagefs.store.base import blob_key, pack_key
from tests.daemon.place import Place
from tests.fuse.images import FRAME, noise
from tests.system.world import wait_until

DATA = noise(3 * FRAME)


@pytest.fixture
def image(place: Place) -> str:
    """An image with two files, published as ``test:latest``."""
    maker = place.maker()
    maker.file("big", DATA)
    maker.file("small", b"small\n")
    return maker.publish()


def test_mount_read_umount_leaves_nothing(place: Place, image: str) -> None:
    point = place.mountpoint()
    result = client.mount(place.config, mountpoint=point, ref="test")
    assert (result["manifest"], result["mode"], result["files"], result["bytes"]) == (image, "fuse", 2, len(DATA) + 6)
    assert (point / "big").read_bytes() == DATA
    entry = mount_at(point)
    assert entry is not None
    assert {"ro", "nosuid", "nodev"} <= entry.options
    status = client.status(place.config)
    assert [(mount["mountpoint"], mount["manifest"]) for mount in status["mounts"]] == [(str(point), image)]
    assert client.umount(place.config, point) == {"mountpoint": str(point), "stopping": True}
    assert place.mounted() == []
    assert not client.running(place.config)
    assert list(point.iterdir()) == []


def test_one_image_at_two_places_is_one(place: Place, image: str) -> None:
    one, two = place.mountpoint("one"), place.mountpoint("two")
    client.mount(place.config, mountpoint=one, manifest=image)
    client.mount(place.config, mountpoint=two, manifest=image)
    assert (one / "big").stat().st_ino == (two / "big").stat().st_ino
    (one / "big").read_bytes()
    reads = client.stats(place.config)["fuse_requests"]["read"]
    assert (two / "big").read_bytes() == DATA
    assert client.stats(place.config)["fuse_requests"]["read"] == reads
    assert client.umount(place.config, one)["stopping"] is False
    assert (two / "big").read_bytes() == DATA
    client.umount(place.config, two)


def test_many_mounts_at_once_open_the_image_once(place: Place, image: str) -> None:
    points = [place.mountpoint(f"at-once-{number}") for number in range(8)]
    with ThreadPoolExecutor(len(points)) as pool:
        results = list(pool.map(lambda point: client.mount(place.config, mountpoint=point, ref="test"), points))
    assert sorted(result["index_moved"] > 0 for result in results) == [False] * 7 + [True]
    assert {result["manifest"] for result in results} == {image}


def test_two_images_share_frames_in_ram(place: Place, image: str) -> None:
    maker = place.maker()
    maker.file("elsewhere/big", DATA)
    other = maker.publish("other:1")
    one, two = place.mountpoint("one"), place.mountpoint("two")
    client.mount(place.config, mountpoint=one, manifest=image)
    client.mount(place.config, mountpoint=two, manifest=other)
    (one / "big").read_bytes()
    moved = client.stats(place.config)["store_bytes"]
    assert (two / "elsewhere/big").read_bytes() == DATA
    assert client.stats(place.config)["store_bytes"] == moved


def test_an_image_that_comes_back_has_new_nodeids(place: Place, image: str) -> None:
    keep, point = place.mountpoint("keep"), place.mountpoint()
    maker = place.maker()
    maker.file("x", b"x" * 1000)
    client.mount(place.config, mountpoint=keep, manifest=maker.publish("keep:1"))
    client.mount(place.config, mountpoint=point, manifest=image)
    first = (point / "big").stat().st_ino
    client.umount(place.config, point)
    assert place.trees() == [client.status(place.config)["mounts"][0]["manifest"]]
    client.mount(place.config, mountpoint=point, manifest=image)
    assert (point / "big").stat().st_ino != first
    assert (point / "big").read_bytes() == DATA


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: path.rmdir(), "does not exist"),
        (lambda path: (path / "file").write_bytes(b""), "not empty"),
        (lambda path: (path.rmdir(), path.write_bytes(b"")), "not a directory"),
    ],
)
def test_a_mountpoint_that_cannot_be_leaves_nothing_behind(place: Place, image: str, prepare, words: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    point = place.mountpoint()
    prepare(point)
    with pytest.raises(MountError, match=words):
        client.mount(place.config, mountpoint=point, manifest=image)
    assert client.status(place.config)["mounts"] == []
    assert place.trees() == []


def test_a_second_mount_at_one_place_is_refused(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, manifest=image)
    with pytest.raises(MountError, match="already mounted"):
        client.mount(place.config, mountpoint=point, manifest=image)
    assert (point / "big").read_bytes() == DATA


def test_what_is_not_there_is_said(place: Place, image: str) -> None:
    point = place.mountpoint()
    with pytest.raises(NotFoundError):
        client.mount(place.config, mountpoint=point, ref="tset")
    with pytest.raises(NotFoundError):
        client.mount(place.config, mountpoint=point, manifest="0" * 64)
    with pytest.raises(UsageError):
        client.mount(place.config, mountpoint=point, manifest=image, mode="none")
    with pytest.raises(MountError, match="no image is mounted"):
        client.umount(place.config, point)
    assert place.mounted() == [str(place.config.instance_dir() / "fuse")]


def test_a_busy_mount_is_named_and_a_lazy_umount_lets_its_user_finish(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, manifest=image)
    command = "import sys; f = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.readline(); sys.stdout.buffer.write(f.read())"
    with subprocess.Popen([sys.executable, "-c", command, point / "big"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        with pytest.raises(MountError, match=rf"in use by .*\({user.pid}\)"):
            client.umount(place.config, point)
        assert (point / "small").read_bytes() == b"small\n"
        assert client.umount(place.config, point, lazy=True)["stopping"] is False
        assert mount_at(point) is None
        out, _ = user.communicate(b"\n", timeout=20)
        assert out == DATA
    wait_until(lambda: not client.running(place.config), "the daemon to end after the last file was closed", 60)


def test_a_mount_taken_away_by_others_is_noticed(place: Place, image: str) -> None:
    point = place.mountpoint()
    client.mount(place.config, mountpoint=point, manifest=image)
    unmount(point)
    assert client.status(place.config)["mounts"] == []
    client.mount(place.config, mountpoint=point, manifest=image)
    assert (point / "big").read_bytes() == DATA


def test_sigterm_unmounts_everything(place: Place, image: str) -> None:
    points = [place.mountpoint(f"m{number}") for number in range(3)]
    for point in points:
        client.mount(place.config, mountpoint=point, manifest=image)
    os.kill(place.pid(), signal.SIGTERM)
    wait_until(lambda: not client.running(place.config) and place.mounted() == [], "the daemon to end")
    assert '"stopped"' in place.log()


def test_what_a_killed_daemon_left_is_taken_away_by_the_next(place: Place, image: str) -> None:
    point, other = place.mountpoint(), place.mountpoint("other")
    client.mount(place.config, mountpoint=point, manifest=image)
    place.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        (point / "big").read_bytes()
    client.mount(place.config, mountpoint=other, manifest=image)
    assert mount_at(point) is None
    assert (other / "big").read_bytes() == DATA
    client.mount(place.config, mountpoint=point, manifest=image)
    assert (point / "big").read_bytes() == DATA


def test_one_daemon_however_many_start_it(place: Place, image: str) -> None:
    points = [place.mountpoint(f"m{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda point: client.mount(place.config, mountpoint=point, manifest=image), points))
    assert {result["mountpoint"] for result in results} == {str(point) for point in points}
    assert place.log().count('"started"') == 1
    with ThreadPoolExecutor(6) as pool:
        assert any(list(pool.map(lambda point: client.umount(place.config, point)["stopping"], points)))
    assert place.mounted() == []


def test_a_store_that_is_none_is_said_and_its_daemon_does_not_stay(place: Place, image: str, tmp_path: Path) -> None:
    point = place.mountpoint()
    config = place.config.__class__(f"file://{tmp_path}/nowhere", place.config.cache, place.config.runtime)
    with pytest.raises(StoreError):
        client.mount(config, mountpoint=point, manifest=image)
    wait_until(lambda: place.mounted() == [] and not client.running(config), "the daemon to end")


def test_without_a_daemon_questions_say_so(place: Place) -> None:
    with pytest.raises(DaemonError):
        client.status(place.config)
    with pytest.raises(DaemonError):
        client.stop(place.config)
    assert client.daemons(place.config) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_pack_is_eio_where_it_is_hit_and_nothing_else(place: Place, damage: str) -> None:
    maker = place.maker()
    other = noise(2 * FRAME, 7)
    maker.file("hit", DATA)
    maker.file("fine", other)
    pack = place.root / "store" / pack_key(maker.packs[0][0].hex())
    place.mountpoint()
    client.mount(place.config, mountpoint=place.root / "mnt", manifest=maker.publish())
    point = place.root / "mnt"
    data = bytearray(pack.read_bytes())
    entry = maker.packs[0][3][1]
    data[entry.offset + 10] ^= 0x10
    pack.unlink()
    if damage == "flip":
        pack.write_bytes(data)
    elif damage == "truncate":
        pack.write_bytes(data[: entry.offset + 1])
    descriptor = os.open(point / "hit", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(descriptor, 4096, FRAME + 5)
        if damage == "remove":
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(descriptor, 4096, 0)
        else:
            assert os.pread(descriptor, 4096, 0) == DATA[:4096]
        if damage == "flip":
            assert os.pread(descriptor, 4096, 2 * FRAME) == DATA[2 * FRAME : 2 * FRAME + 4096]
    finally:
        os.close(descriptor)
    assert (point / "fine").read_bytes() == other
    events = [json.loads(line) for line in place.log().splitlines()]
    failed = [event for event in events if event["event"] == "frame_failed"]
    assert entry.digest.hex() in {event["frame"] for event in failed}
    assert {event["pack"] for event in failed} == {maker.packs[0][0].hex()}
    assert {event["tier"] for event in failed} == {"store"}
    stats = client.stats(place.config)
    assert stats["failed_requests"] > 0
    assert (stats["verify_failures"] > 0) is (damage == "flip")
    assert stats["internal_errors"] == 0


def test_a_damaged_tree_cannot_be_mounted(place: Place, image: str) -> None:
    point = place.mountpoint()
    document = json.loads((place.root / "store/manifests" / image).read_bytes())
    blob = place.root / "store" / blob_key(document["tree"]["digest"])
    data = bytearray(blob.read_bytes())
    data[-20] ^= 0xFF
    blob.unlink()
    blob.write_bytes(data)
    with pytest.raises(IntegrityError):
        client.mount(place.config, mountpoint=point, manifest=image)
    assert mount_at(point) is None


def test_names_with_spaces_and_odd_bytes_work(place: Place, image: str) -> None:
    point = place.mountpoint("a b\\c\td")
    client.mount(place.config, mountpoint=point, manifest=image)
    assert (point / "big").read_bytes() == DATA
    client.umount(place.config, point)
    assert place.mounted() == []


def test_memory_of_an_idle_daemon_is_small(place: Place, image: str) -> None:
    client.mount(place.config, mountpoint=place.mountpoint(), manifest=image)
    assert client.stats(place.config)["rss_bytes"] < 60 << 20


def test_a_daemon_that_cannot_mount_says_why_and_leaves_nothing(place: Place, image: str) -> None:
    directory = place.config.instance_dir()
    directory.mkdir(parents=True, mode=0o700)
    (directory / "fuse").write_bytes(b"not a directory")
    with pytest.raises(DaemonError, match="FileExistsError"):
        client.mount(place.config, mountpoint=place.mountpoint(), manifest=image)
    assert place.mounted() == []
