"""Snapshots that are mounted for a moment, again and again: the kernel keeps their pages from one mount to the next."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.store.refs import Ref
from snapshotstore.repository import push
from tests.daemon.place import Place
from tests.snapshots.checkpoints import checkpoint, memory, record
from tests.system.world import require

PAGES = 2_000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose daemon goes on: an image is mounted all the time."""
    require("root", "to mount snapshots")
    made = Place(tmp_path / "place")
    maker = made.maker()
    maker.file("a", b"x" * 100)
    maker.publish()
    client.mount(made.config, mountpoint=made.mountpoint("kept"), ref="test:latest")
    yield made
    assert made.close() == []


def _pushed(place: Place, tmp_path: Path, seed: int) -> str:
    data = memory(PAGES, seed=seed)
    return push(place.store, checkpoint(tmp_path / f"c{seed}", data), record(), Ref(f"service{seed}")).manifest


def _read(place: Place, manifest: str, name: str) -> int:
    """Mount, read the memory, unmount; return how many reads the daemon answered for it."""
    point = place.mountpoint(name)
    client.mount(place.config, mountpoint=point, manifest=manifest)
    before = client.stats(place.config)["fuse_requests"].get("read", 0)
    data = next(point.glob("engine/pages-*")).read_bytes()
    assert len(data) == PAGES * 4096
    asked = client.stats(place.config)["fuse_requests"].get("read", 0) - before
    client.umount(place.config, point)
    return int(asked)


def test_the_second_mount_reads_what_the_kernel_kept(place: Place, tmp_path: Path) -> None:
    manifest = _pushed(place, tmp_path, 1)
    assert _read(place, manifest, "first") > 0
    assert manifest in place.trees()
    assert _read(place, manifest, "second") == 0


def test_only_a_few_are_kept(place: Place, tmp_path: Path) -> None:
    manifests = [_pushed(place, tmp_path, seed) for seed in range(10)]
    for seed, manifest in enumerate(manifests):
        _read(place, manifest, f"m{seed}")
    client.status(place.config)  # looks what may go
    shown = set(place.trees()) & set(manifests)
    assert shown == set(manifests[-8:])


def test_an_image_is_not(place: Place) -> None:
    maker = place.maker()
    maker.file("b", b"y" * 5000)
    manifest = maker.publish("other:latest")
    point = place.mountpoint("other")
    client.mount(place.config, mountpoint=point, manifest=manifest)
    client.umount(place.config, point)
    assert manifest not in place.trees()
