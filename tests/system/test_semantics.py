"""What differs from ext4, in each mode: a test for each row of docs/semantics.md that no other module tests.

One image, mounted at two places in FUSE mode, and at two others in kernel mode, where all of it is on SSD already. What kernel mode shows
of content that is not, is what FUSE mode shows.
"""

import array
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imagefs.daemon import client
from imagefs.digest import digest_of
from imagefs.format.tree import Inode
from imagefs.mount.mountinfo import mount_at
from tests.daemon.place import Place
from tests.fuse.images import FRAME, MTIME, Maker, noise
from tests.system.world import require as require_feature
from tests.system.world import wait_until

BIG = noise(3 * 1024 * 1024 + 777, 1)
LINKED = noise(5000, 2)
SPARSE = noise(FRAME, 3) + bytes(2 * FRAME) + noise(FRAME, 4)
NAMES = ["b", "a", "ab", "B", "10", "9"]

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_FIEMAP = 0xC020660B
_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


@dataclass
class Shown:
    """The image at two places."""

    mode: str
    path: Path
    again: Path
    place: Place

    def differs(self, *, fuse: Any, kernel: Any) -> Any:
        return fuse if self.mode == "fuse" else kernel

    def on_ssd(self, data: bytes) -> Path:
        """Return the file of the SSD tier that is the object of ``data``."""
        name = digest_of(data).hex()
        return self.place.config.cache / "objects" / name[:2] / name[2:]


def publish(maker: Maker) -> None:
    maker.file("big", BIG)
    maker.file("sparse", SPARSE, hole=(FRAME, 3 * FRAME))
    maker.file("inline", b"in the tree\n")
    maker.put("links/two", maker.file("links/one", LINKED))
    for name in NAMES:
        maker.put(f"names/{name}", Inode(stat.S_IFIFO | 0o600, mtime_ns=MTIME))
    maker.put("null", Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), mtime_ns=MTIME))
    maker.put("nothing", Inode(stat.S_IFCHR | 0o666, rdev=0, mtime_ns=MTIME))
    tagged = maker.file("tagged", noise(100, 5), mode=0o4755)
    tagged.xattrs = {b"user.colour": b"blue", b"trusted.overlay.opaque": b"y"}
    maker.publish()


@pytest.fixture(scope="module", params=["fuse", "kernel"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    require_feature("root", "mounts as root")
    place = Place(tmp_path_factory.mktemp("semantics") / "place")
    try:
        yield mounted(place, request.param)
    finally:
        left = place.close()
    assert left == []


def mounted(place: Place, mode: str) -> Shown:
    publish(place.maker())
    first, path, again = (place.mountpoint(name) for name in ("first", "mnt", "again"))
    client.mount(place.config, mountpoint=first, ref="test", mode=mode)
    for file in ("big", "sparse", "links/one", "tagged"):
        (first / file).read_bytes()
    wait_until(lambda: client.stats(place.config)["objects_complete"] >= 4, "all of it to be on SSD")
    for target in (path, again):
        assert client.mount(place.config, mountpoint=target, ref="test", mode=mode)["mode"] == mode
    client.umount(place.config, first)
    return Shown(mode, path, again, place)


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


class Opened:
    """A descriptor, for a with statement."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | flags)

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


# -- nothing changes -----------------------------------------------------------------------------------------------------------------------


def test_every_change_is_refused_as_read_only(shown: Shown) -> None:
    path = shown.path
    changes: list[Callable[[], object]] = [
        lambda: os.open(path / "big", os.O_WRONLY),
        lambda: os.open(path / "big", os.O_RDWR),
        lambda: os.open(path / "new", os.O_WRONLY | os.O_CREAT),
        lambda: os.open(path, os.O_TMPFILE | os.O_RDWR),
        lambda: os.truncate(path / "big", 1),
        (path / "big").unlink,
        lambda: (path / "big").rename(path / "other"),
        lambda: os.link(path / "big", path / "other"),
        (path / "new").mkdir,
        lambda: (path / "big").chmod(0o600),
        lambda: os.chown(path / "big", 1, 1),
        lambda: os.utime(path / "big"),
        lambda: os.setxattr(path / "big", "user.x", b"y"),
    ]
    assert [error_of(change) for change in changes] == ["EROFS"] * len(changes)
    assert not os.access(path / "big", os.W_OK)


def test_devices_do_not_open_and_set_user_id_does_not_count(shown: Shown) -> None:
    assert error_of(lambda: os.open(shown.path / "null", os.O_RDONLY)) == "EACCES"
    entry = mount_at(shown.path)
    assert entry is not None
    assert entry.options >= {"ro", "nodev", "nosuid"}
    # It is shown nonetheless.
    assert (shown.path / "tagged").stat().st_mode & stat.S_ISUID


def test_a_mapping_may_be_written_to_only_if_it_is_private(shown: Shown) -> None:
    with Opened(shown.path / "big") as descriptor:
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            mapped[:4] = b"mine"
            assert os.pread(descriptor, 4, 0) == BIG[:4]
        with mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            assert mapped[:] == BIG


def test_times_are_the_images_and_stay(shown: Shown) -> None:
    (shown.path / "big").read_bytes()
    status = (shown.path / "big").stat()
    assert status.st_atime_ns == status.st_mtime_ns == status.st_ctime_ns == MTIME
    born = subprocess.run(["stat", "-c", "%W", shown.path / "big"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert born == "0\n", "not known"


# -- identity ------------------------------------------------------------------------------------------------------------------------------


def test_inode_numbers(shown: Shown) -> None:
    numbers = {(shown.path / name).lstat().st_ino for name in ("big", "sparse", "inline", "tagged", "links", "null")}
    assert len(numbers) == 6
    if shown.mode == "fuse":
        assert min(numbers) > 1 << 32, "of this image and no other one of the daemon's"
    else:
        assert max(numbers) < 1 << 32, "the image's own"
    for entry in os.scandir(shown.path):
        assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_devices_of_files_and_mounts(shown: Shown) -> None:
    one, two = ((path / "big").stat() for path in (shown.path, shown.again))
    assert one.st_ino == two.st_ino
    assert (one.st_dev == two.st_dev) == shown.differs(fuse=True, kernel=False)
    assert {(shown.path / name).lstat().st_dev for name in (".", "links", "big", "inline")} == {one.st_dev}
    assert os.major(one.st_dev) == 0


def test_hard_links_are_links(shown: Shown) -> None:
    one, two = (shown.path / "links/one").stat(), (shown.path / "links/two").stat()
    assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)


def test_file_handles(shown: Shown) -> None:
    found = error_of(lambda: open_by_handle(shown.path, shown.path / "big"))
    assert found == shown.differs(fuse="done", kernel="ENOTSUP")


def open_by_handle(mount: Path, path: Path) -> None:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    number = ctypes.c_int()
    if _LIBC.name_to_handle_at(_AT_FDCWD, os.fsencode(path), handle, ctypes.byref(number), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    with Opened(mount) as folder:
        descriptor = _LIBC.open_by_handle_at(folder, handle, os.O_RDONLY)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    assert os.pread(descriptor, 4, 0) == BIG[:4]
    os.close(descriptor)


# -- attributes ----------------------------------------------------------------------------------------------------------------------------


def test_magic_attributes(shown: Shown) -> None:
    big = shown.path / "big"
    found = {name: error_of(lambda name=name: os.getxattr(big, f"user.imagefs.{name}")) for name in ("object", "tier", "frames")}  # type: ignore[misc]
    assert set(found.values()) == {shown.differs(fuse="done", kernel="ENODATA")}
    if shown.mode == "fuse":
        assert os.getxattr(big, "user.imagefs.object") == digest_of(BIG).hex().encode()
        assert os.getxattr(big, "user.imagefs.frames") == b"13"
        assert os.getxattr(big, "user.imagefs.tier") in (b"ram", b"ssd")
    assert os.listxattr(big) == []


def test_attributes_of_overlayfs(shown: Shown) -> None:
    for name in ("metacopy", "redirect"):
        assert error_of(lambda name=name: os.getxattr(shown.path / "big", f"trusted.overlay.{name}")) == "ENODATA"  # type: ignore[misc]
    tagged = shown.path / "tagged"
    assert sorted(os.listxattr(tagged)) == ["trusted.overlay.opaque", "user.colour"]
    assert os.getxattr(tagged, "trusted.overlay.opaque") == b"y"


def test_a_device_of_zeros(shown: Shown) -> None:
    seen = shown.differs(fuse=True, kernel=False)
    assert ("nothing" in {path.name for path in shown.path.iterdir()}) == seen
    assert (error_of((shown.path / "nothing").lstat) == "done") == seen


# -- directories and space -----------------------------------------------------------------------------------------------------------------


def test_directories_are_sorted_and_have_other_sizes(shown: Shown) -> None:
    assert [path.name for path in os.scandir(shown.path / "names")] == sorted(NAMES)
    status = (shown.path / "names").stat()
    assert 0 < status.st_size < 4096
    assert status.st_nlink == 2
    assert shown.path.stat().st_nlink == 4


def test_statfs_knows_no_free_space(shown: Shown) -> None:
    found = os.statvfs(shown.path)
    assert (found.f_bfree, found.f_bavail, found.f_bsize, found.f_namemax) == (0, 0, 4096, 255)
    if shown.mode == "fuse":
        assert found.f_blocks * 4096 >= len(BIG) + len(SPARSE), "what is mounted, all images together"
    else:
        assert found.f_blocks * 4096 < len(BIG), "the tree alone, without content"
    kind = subprocess.run(["stat", "-f", "-c", "%t", shown.path], capture_output=True, text=True, timeout=10, check=True).stdout
    assert kind == shown.differs(fuse="65735546\n", kernel="794c7630\n")


def test_holes_and_blocks(shown: Shown) -> None:
    with Opened(shown.path / "sparse") as descriptor, Opened(shown.on_ssd(SPARSE)) as local:
        assert os.read(descriptor, len(SPARSE)) == SPARSE
        hole = os.lseek(descriptor, 0, os.SEEK_HOLE)
        assert hole == shown.differs(fuse=len(SPARSE), kernel=os.lseek(local, 0, os.SEEK_HOLE))
    blocks = (shown.path / "sparse").stat().st_blocks
    assert blocks == shown.differs(fuse=len(SPARSE) // 512, kernel=shown.on_ssd(SPARSE).stat().st_blocks)


# -- calls ---------------------------------------------------------------------------------------------------------------------------------


def test_direct_reads(shown: Shown) -> None:
    with Opened(shown.path / "big", os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as page:
        assert os.preadv(descriptor, [page], 4096) == 4096
        assert page[:] == BIG[4096:8192]
        # The rules are those of who has the content: FUSE's, or the cache's file system's.
        found = error_of(lambda: os.pread(descriptor, 100, 3))
    with Opened(shown.on_ssd(BIG), os.O_DIRECT) as local:
        assert found == shown.differs(fuse="done", kernel=error_of(lambda: os.pread(local, 100, 3)))


def test_calls_that_are_not_there(shown: Shown) -> None:
    with Opened(shown.path / "big") as descriptor, Opened(shown.on_ssd(BIG)) as local:
        flags = array.array("l", [0])
        assert error_of(lambda: fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, flags)) == "ENOTTY"
        assert extents(descriptor) == shown.differs(fuse="ENOTSUP", kernel=extents(local))


def extents(descriptor: int) -> str:
    return error_of(lambda: fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, struct.pack("QQIIII", 0, 1 << 40, 0, 0, 0, 0)))


def test_locks_are_this_hosts(shown: Shown) -> None:
    """As on ext4; they are not the store's."""
    script = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with Opened(shown.path / "big") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fcntl.lockf(descriptor, fcntl.LOCK_SH)
        done = subprocess.run(["python3", "-c", script, shown.path / "big"], capture_output=True, text=True, timeout=20, check=False)
        assert "BlockingIOError" in done.stderr


# -- a writable layer ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def upper(shown: Shown) -> Iterator[Path]:
    path = shown.place.mountpoint("writable")
    client.mount(shown.place.config, mountpoint=path, ref="test", mode="kernel", upper=str(shown.place.root / "upper"))
    yield path
    client.umount(shown.place.config, path, lazy=True)


@pytest.mark.parametrize("shown", ["kernel"], indirect=True)
def test_a_writable_layer_copies_a_file_at_its_first_change(upper: Path) -> None:
    with Opened(upper / "big") as before, mmap.mmap(before, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        number = (upper / "big").stat().st_ino
        with (upper / "big").open("r+b") as file:
            file.write(b"changed")
        assert (upper / "big").read_bytes() == b"changed" + BIG[7:]
        assert mapped[:7] == BIG[:7], "who had it mapped goes on with what it was"
        assert (upper / "big").stat().st_ino == number
    (upper / "links/one").write_bytes(b"one")
    assert (upper / "links/two").read_bytes() == LINKED, "the other name is another file now"
