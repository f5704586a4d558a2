"""``objects/`` of the FUSE mount: every object of every mounted image under its name, whichever image has it."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.format.objectmap import Extent, ObjectMap, build_object_map
from imagefs.fuse.forest import OBJECT_BIT, SHARDS, Forest, object_node
from tests.daemon.place import Place
from tests.fuse.conftest import BIG, SMALL, SPARSE, Mounted
from tests.fuse.images import Row, noise
from tests.system.world import require as require_feature


def _objects(place: Place) -> Path:
    return place.config.instance_dir() / "fuse/objects"


def _path(place: Place, data: bytes) -> Path:
    name = digest_of(data).hex()
    return _objects(place) / name[:2] / name[2:]


def test_every_object_is_there_under_its_name(mounted: Mounted) -> None:
    for data in (BIG, SPARSE, *SMALL.values()):
        if len(data) <= 64:
            continue
        path = _path(mounted.place, data)
        status = path.stat()
        assert path.read_bytes() == data
        assert (status.st_mode, status.st_size, status.st_nlink) == (stat.S_IFREG | 0o444, len(data), 1)
        assert status.st_ino == object_node(digest_of(data))


def test_names_that_are_no_objects_are_not_there(mounted: Mounted) -> None:
    objects = _objects(mounted.place)
    for name in ("zz", "0", "000", "AB", digest_of(BIG).hex()):
        with pytest.raises(FileNotFoundError):
            (objects / name).stat()
    name = digest_of(BIG).hex()
    for rest in ("0" * 62, name[2:].upper(), name[2:-1], name[2:] + "0", "x"):
        with pytest.raises(FileNotFoundError):
            (objects / name[:2] / rest).stat()


def test_nothing_is_listed_and_nothing_can_be_written(mounted: Mounted) -> None:
    objects = _objects(mounted.place)
    assert sorted(path.name for path in objects.parent.iterdir()) == ["objects", "trees"]
    assert list(objects.iterdir()) == []
    assert list((objects / "00").iterdir()) == []
    assert stat.S_IMODE((objects / "00").stat().st_mode) == 0o111
    assert (objects / "00").stat().st_ino == SHARDS
    with pytest.raises(OSError, match="Read-only") as refused:
        _path(mounted.place, BIG).open("r+b")
    assert refused.value.errno == errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        (objects / "00" / "new").touch()


def test_objects_say_where_they_are_read_from(mounted: Mounted) -> None:
    path = _path(mounted.place, BIG)
    path.read_bytes()
    assert os.getxattr(path, "user.imagefs.object") == digest_of(BIG).hex().encode()
    assert os.getxattr(path, "user.imagefs.tier") in {b"ram", b"ssd"}
    assert os.listxattr(path) == []
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.other")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_feature("root", "mounts through /dev/fuse as root")
    found = Place(tmp_path / "place")
    yield found
    assert found.close() == []


def test_an_object_outlives_the_image_through_which_it_was_found_first(place: Place) -> None:
    """The kernel keeps the nodeid: it has to mean the same whichever image is left."""
    shared, own = noise(700_000, 1), noise(5000, 2)
    points = []
    for number in range(2):
        maker = place.maker()
        maker.file("shared", shared)
        if number == 0:
            maker.file("own", own)
        manifest = maker.publish(f"image:{number}")
        points.append(place.mountpoint(f"m{number}"))
        client.mount(place.config, mountpoint=points[-1], manifest=manifest)
    path = _path(place, shared)
    descriptor, alone = os.open(path, os.O_RDONLY), _path(place, own)
    try:
        assert os.pread(descriptor, 100, 0) == shared[:100]
        alone.stat()
        client.umount(place.config, points[0])
        assert os.pread(descriptor, 300_000, 400_000) == shared[400_000:]
        assert path.read_bytes() == shared
        with pytest.raises(FileNotFoundError):  # the kernel looks it up anew where its nodeid is refused
            alone.read_bytes()
    finally:
        os.close(descriptor)


class _Image:
    """As much of an image as a forest looks at."""

    def __init__(self, name: str, digests: list[bytes]) -> None:
        self.name = name
        rows = [Row(digest, 10, [Extent(0, 10, 0xFFFFFFFF, 0)]) for digest in sorted(digests)]
        self.objects = ObjectMap(build_object_map(rows, []))
        self.tree = self
        self.root = 1


def test_two_objects_that_begin_alike_are_both_refused() -> None:
    one, two, other = b"\x80" + b"\0" * 31, b"\x80" + b"\0" * 30 + b"\1", b"\x81" + b"\0" * 31
    forest = Forest()
    first = forest.add(1, _Image("a", [one, other]))  # type: ignore[arg-type] # see _Image
    assert forest.find_object(one) == OBJECT_BIT | 1 << 62
    assert forest.find_object(two) is None
    second = forest.add(2, _Image("b", [two]))  # type: ignore[arg-type] # see _Image
    assert forest.find_object(one) is None
    assert forest.find_object(two) is None
    assert forest.object_at(object_node(one)) is None
    assert forest.find_object(other) == object_node(other)
    forest.drop(first)
    assert forest.find_object(two) == object_node(two)
    forest.drop(second)
    forest.add(3, _Image("c", [one, two]))  # type: ignore[arg-type] # see _Image
    assert forest.find_object(one) is None


def test_an_image_is_in_use_while_an_object_is_open_that_no_other_has() -> None:
    shared, own = digest_of(b"shared"), digest_of(b"own")
    forest = Forest()
    first, second = (forest.add(number, _Image(str(number), [shared, *more])) for number, more in ((1, [own]), (2, [])))  # type: ignore[arg-type]
    forest.opened(object_node(shared))
    forest.opened(object_node(own))
    forest.opened(object_node(own))
    assert (forest.is_in_use(first), forest.is_in_use(second)) == (True, False)
    forest.released(object_node(own))
    assert forest.is_in_use(first)
    forest.released(object_node(own))
    assert (forest.is_in_use(first), forest.is_in_use(second)) == (False, False)
    forest.drop(first)
    assert forest.is_in_use(second), "the last that has it"
    forest.released(object_node(shared))
    assert not forest.is_in_use(second)
    forest.released(object_node(shared))
    assert not forest.is_in_use(second)


def test_what_moved_is_told_once_it_is_closed_and_elsewhere() -> None:
    here, gone, open_ = (digest_of(name) for name in (b"here", b"gone", b"open"))
    forest = Forest()
    forest.add(1, _Image("1", [here, gone, open_]))  # type: ignore[arg-type] # see _Image
    for digest in (here, gone, open_):
        forest.opened(object_node(digest))
        if digest != open_:
            forest.released(object_node(digest))
    assert forest.take_moved(lambda row: row.digest != here) == [object_node(gone)]
    assert forest.take_moved(lambda row: row.digest != here) == []
    forest.released(object_node(open_))
    assert set(forest.take_moved(lambda _: True)) == {object_node(here), object_node(open_)}
