"""What is cut too finely to be read at once is read all the same: the kernel asks again for each page of what failed."""

import stat
from pathlib import Path

from imagefs.cache.layout import EXTENTS_MAX
from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.format.objectmap import Extent
from imagefs.format.tree import Inode
from tests.daemon.place import Place
from tests.fuse.images import MTIME, Row, noise
from tests.system.world import require as require_feature

LENGTH = 16


def test_an_object_of_very_many_extents(tmp_path: Path) -> None:
    require_feature("root", "mounts through /dev/fuse as root")
    place = Place(tmp_path / "place")
    maker = place.maker()
    data = noise(2 * EXTENTS_MAX * LENGTH)
    maker._pack([data])
    digest = digest_of(data)
    maker.rows[digest] = Row(digest, len(data), [Extent(at, LENGTH, 0, at) for at in range(0, len(data), LENGTH)])
    maker.put("f", Inode(stat.S_IFREG | 0o644, object=digest, size=len(data), mtime_ns=MTIME))
    path = place.mountpoint()
    client.mount(place.config, mountpoint=path, manifest=maker.publish())
    assert (path / "f").read_bytes() == data
    assert client.stats(place.config)["failed_requests"] > 0
    assert place.close() == []
