"""One mounted image for all tests that only look at it."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.format.tree import Inode
from tests.daemon.place import Place
from tests.fuse.images import FRAME, MTIME, noise
from tests.system.world import require as require_feature

BIG = noise(5 * 1024 * 1024 + 777)
SPARSE = noise(FRAME) + bytes(3 * FRAME) + noise(FRAME // 2, 3)
SMALL = {f"small/f{number:03}": noise(100 + number, number) for number in range(300)}


@dataclass
class Mounted:
    """An image at ``path``, and the place of its daemon."""

    place: Place
    path: Path
    manifest: str

    def requests(self) -> dict[str, int]:
        """Return how many requests of each kind the kernel has made."""
        counts: dict[str, int] = client.stats(self.place.config)["fuse_requests"]
        return counts


@pytest.fixture(scope="package")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Mount an image with a file of every kind."""
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path_factory.mktemp("fuse") / "place")
    maker = place.maker()
    maker.file("big", BIG)
    maker.file("sparse", SPARSE, hole=(FRAME, 4 * FRAME))
    maker.file("inline", b"in the tree\n")
    maker.file("empty", b"")
    maker.shared(SMALL)
    maker.file("bin/dash", Path("/bin/dash").read_bytes(), mode=0o755)
    linked = maker.file("names/one", noise(5000, 99), mode=0o4751)
    linked.uid, linked.gid, linked.mtime_ns = 70000, 4_000_000_000, -1_500_000_001
    maker.put("names/two", linked)
    maker.put(os.fsdecode(b"names/\xff\xfe" + b"n" * 253), linked)
    maker.put("link", Inode(stat.S_IFLNK | 0o777, target=b"../else/\xffwhere" * 100, mtime_ns=MTIME))
    maker.put("device", Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(250, 70000), mtime_ns=MTIME))
    maker.put("fifo", Inode(stat.S_IFIFO | 0o600, mtime_ns=MTIME))
    private = maker.file("private", b"secret")
    private.mode = stat.S_IFREG | 0o600
    tagged = maker.file("tagged", noise(2000, 5))
    tagged.xattrs = {
        b"user.colour": b"blue\0green",
        b"security.capability": bytes.fromhex("0100000200200000000000000000000000000000"),
        b"trusted.overlay.opaque": b"y",
    }
    manifest = maker.publish()
    path = place.mountpoint()
    client.mount(place.config, mountpoint=path, manifest=manifest)
    yield Mounted(place, path, manifest)
    assert place.close() == []
