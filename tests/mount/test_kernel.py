"""Kernel mode, mounted by the kernel: an image shows what its tree says and reads what its objects hold, whichever directory has them."""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from imagefs.digest import digest_of
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from imagefs.mount.bind import unmount
from imagefs.mount.kernel import Backing, mount_image, mount_tree
from imagefs.mount.layers import STYLES, Style
from imagefs.mount.mountinfo import mount_at
from tests.format.inode_strategies import Row, describe, inode_trees
from tests.mount.kernel_place import LAZY, MTIME, SSD, Place, kernel_or_skip, mount_lines, names

_ACL = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 2, 4, 1234, 4, 4, 0xFFFFFFFF, 16, 6, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF)


@pytest.fixture(params=[Backing.FILE, Backing.LOOP])
def backing(request: pytest.FixtureRequest) -> Backing:
    """Each way to read a tree, so that the one this kernel would not choose is tried too."""
    return Backing(request.param)


@pytest.fixture(params=STYLES, ids=lambda style: style.name)
def style(request: pytest.FixtureRequest) -> Style:
    """Each way to give layers, likewise."""
    return Style(request.param)


def test_content_comes_from_either_directory(place: Place, backing: Backing, style: Style) -> None:
    small, large = os.urandom(100), os.urandom(3_000_000)
    place.file("here", small, ssd=True)
    place.file("deep/er/there", large)
    place.put("tiny", Inode(stat.S_IFREG | 0o644, inline=b"in the tree", size=11, mtime_ns=MTIME))
    place.put("empty", Inode(stat.S_IFREG | 0o644, inline=b"", mtime_ns=MTIME))
    assert mount_tree(place.write(), place.tree_mount, backing=backing) is backing
    place.mount_image(styles=[style])
    assert (place.image / "here").read_bytes() == small
    assert (place.image / "deep/er/there").read_bytes() == large
    assert (place.image / "tiny").read_bytes() == b"in the tree"
    assert (place.image / "empty").read_bytes() == b""
    assert names(place.image) == ["deep", "empty", "here", "tiny"]


def test_the_first_directory_wins(place: Place, style: Style) -> None:
    place.told_apart("both", ssd=True)
    place.told_apart("one")
    place.mount(styles=[style])
    assert (place.image / "both").read_bytes() == SSD
    assert (place.image / "one").read_bytes() == LAZY


def test_an_object_that_nobody_has_is_an_error_and_no_hole(place: Place) -> None:
    place.put("gone", Inode(stat.S_IFREG | 0o644, object=digest_of(b"x"), size=10_000, mtime_ns=MTIME))
    place.mount()
    assert (place.image / "gone").stat().st_size == 10_000
    with pytest.raises(OSError, match="Errno") as caught:
        (place.image / "gone").read_bytes()
    assert caught.value.errno in {errno.EIO, errno.ENOENT}


def test_metadata_is_the_trees(place: Place) -> None:
    file = place.file("set-id", b"x" * 500, ssd=True, mode=0o6751, uid=70_000)
    file.gid, file.xattrs = 80_000, {b"user.note": b"\0\xff", b"security.capability": bytes.fromhex("0100000200040000" + "00" * 12)}
    place.put("dir/name", file)
    place.put("link", Inode(stat.S_IFLNK | 0o777, target=b"dir/name", mtime_ns=MTIME))
    place.put("acl", Inode(stat.S_IFREG | 0o660, inline=b"a", size=1, mtime_ns=MTIME, xattrs={b"system.posix_acl_access": _ACL}))
    place.put("own", Inode(stat.S_IFREG | 0o644, inline=b"a", size=1, mtime_ns=MTIME, xattrs={b"trusted.overlay.opaque": b"y"}))
    place.put("sticky", Inode(stat.S_IFDIR | 0o1777, mtime_ns=-1, children={}))
    place.mount()
    info, other = (place.image / "set-id").stat(), (place.image / "dir/name").stat()
    assert (info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_nlink) == (0o106751, 70_000, 80_000, 500, 2)
    assert info.st_mtime_ns == info.st_atime_ns == info.st_ctime_ns == MTIME
    assert (info.st_ino, info.st_dev) == (other.st_ino, other.st_dev)
    assert info.st_dev == place.image.stat().st_dev
    assert info.st_ino == Tree(place.tree.read_bytes()).lookup(Tree(place.tree.read_bytes()).root, b"set-id")
    assert (place.image / "link").readlink() == Path("dir/name")
    assert os.getxattr(place.image / "acl", "system.posix_acl_access") == _ACL
    assert sorted(os.listxattr(place.image / "set-id")) == ["security.capability", "user.note"]
    assert os.getxattr(place.image / "set-id", "user.note") == b"\0\xff"
    assert os.listxattr(place.image / "own") == ["trusted.overlay.opaque"]
    assert (place.image / "sticky").stat().st_mode == 0o41777
    assert (place.image / "sticky").stat().st_mtime_ns == -1


def test_names_of_one_inode_share_what_is_open(place: Place) -> None:
    inode = place.file("a", b"y" * 700)
    place.put("b/c", inode)
    place.mount()
    assert (place.image / "a").samefile(place.image / "b/c")
    assert (place.image / "b/c").read_bytes() == b"y" * 700


@pytest.mark.parametrize("ssd", [False, True])
def test_holes_are_holes(place: Place, ssd: bool) -> None:
    data = b"start".ljust(1 << 20, b"\0") + b"end"
    digest = digest_of(data)
    place.file("sparse", data, ssd=ssd)
    kept = (place.objects if ssd else place.lazy) / digest.hex()[:2] / digest.hex()[2:]
    kept.chmod(0o600)
    with kept.open("r+b") as file:
        file.truncate(4096)
        file.seek(1 << 20)
        file.write(b"end")
    place.mount()
    with (place.image / "sparse").open("rb") as file:
        assert file.read() == data
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 4096
        assert os.lseek(file.fileno(), 4096, os.SEEK_DATA) == 1 << 20
    assert (place.image / "sparse").stat().st_blocks * 512 < 1 << 20


def test_devices_are_there_and_closed(place: Place) -> None:
    place.put("null", Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), mtime_ns=MTIME))
    place.put("fifo", Inode(stat.S_IFIFO | 0o600, mtime_ns=MTIME))
    place.mount()
    assert (place.image / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((place.image / "fifo").stat().st_mode)
    with pytest.raises(PermissionError):
        (place.image / "null").read_bytes()
    assert os.statvfs(place.image).f_flag & (os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID) == os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID
    with pytest.raises(OSError, match="Read-only"):
        (place.image / "new").touch()


def test_devices_and_set_user_id_where_asked_for(place: Place) -> None:
    place.put("null", Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), mtime_ns=MTIME))
    place.mount(dev=True, suid=True)
    assert (place.image / "null").read_bytes() == b""
    assert os.statvfs(place.image).f_flag & (os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID) == os.ST_RDONLY
    assert os.statvfs(place.tree_mount).f_flag & (os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID) == os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID


def test_the_mount_says_whose_it_is(place: Place, style: Style) -> None:
    place.mount(styles=[style])
    entry = mount_at(place.image)
    assert entry is not None
    assert (entry.fstype, entry.source) == ("overlay", "imagefs")
    assert "ro" in entry.options
    (line,) = mount_lines(f"{place.image} ")
    assert "metacopy=on" in line
    assert "nfs_export" not in line, "what is opened by handle would read as a hole"
    for path in (place.tree_mount, place.objects, place.lazy):
        assert str(path) in line
    assert (mount_at(place.tree_mount) or entry).source == str(place.tree)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(root=inode_trees())
def test_every_field_of_any_tree(root: Inode, any_place: Place) -> None:
    any_place.tree.write_bytes(write_tree(root))
    mount_tree(any_place.tree, any_place.tree_mount)
    any_place.mount_image()
    try:
        assert _look(any_place.image) == {
            path: replace(row, object=None) for path, row in describe(root).items() if not _hidden(root, path)
        }
    finally:
        unmount(any_place.image)
        unmount(any_place.tree_mount)


@pytest.fixture(scope="module")
def any_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all examples, each of which mounts and unmounts."""
    kernel_or_skip()
    place = Place(tmp_path_factory.mktemp("any"))
    yield place
    place.close()


def _hidden(root: Inode, path: bytes) -> bool:
    """Whether this is, or lies below, the one thing that overlayfs cannot show: a character device 0:0 is its mark for "nothing here"."""
    inode = root
    for name in path.split(b"/")[1:]:
        inode = (inode.children or {})[name]
    return stat.S_ISCHR(inode.mode) and inode.rdev == 0


def _look(root: Path) -> dict[bytes, Row]:
    top = os.fsencode(root)
    pending, rows, links = [b""], {}, dict[tuple[int, int], set[bytes]]()
    while pending:
        path = pending.pop()
        try:
            info = os.lstat(top + path)
        except FileNotFoundError:
            continue  # a device of zeros, if anything: who asks compares what is missing
        kind = stat.S_IFMT(info.st_mode)
        links.setdefault((info.st_dev, info.st_ino), set()).add(path)
        if kind == stat.S_IFDIR:
            pending += [path + b"/" + os.fsencode(name) for name in names(Path(os.fsdecode(top + path)))]
        rows[path] = (
            info,
            Row(
                mode=info.st_mode,
                uid=info.st_uid,
                gid=info.st_gid,
                mtime_ns=info.st_mtime_ns,
                nlink=info.st_nlink,
                rdev=info.st_rdev,
                size=0 if kind == stat.S_IFDIR else info.st_size,
                target=os.readlink(top + path) if kind == stat.S_IFLNK else b"",  # noqa: PTH115 (a Path would tidy the target up)
                inline=_content(top + path) if kind == stat.S_IFREG else None,
                object=None,
                xattrs=tuple(
                    sorted(
                        (os.fsencode(name), os.getxattr(top + path, name, follow_symlinks=False))
                        for name in os.listxattr(top + path, follow_symlinks=False)
                    )
                ),
                links=frozenset(),
            ),
        )
    return {path: replace(row, links=frozenset(links[info.st_dev, info.st_ino])) for path, (info, row) in rows.items()}


def _content(path: bytes) -> bytes | None:
    """Return what a file holds, or None: no directory has the objects of these trees."""
    try:
        return Path(os.fsdecode(path)).read_bytes()
    except OSError:
        return None


def test_a_tree_may_be_unlinked_and_its_mount_hidden(place: Place, backing: Backing) -> None:
    """The overlay keeps what it needs: neither the file's name nor the tree's mountpoint has to stay."""
    place.file("f", b"z" * 900)
    place.mount(backing=backing)
    place.tree.unlink()
    unmount(place.tree_mount)
    assert (place.image / "f").read_bytes() == b"z" * 900
    assert names(place.image) == ["f"]


def test_many_images_share_directories(make_place: Callable[[str], Place]) -> None:
    """Two images with an object in common read one file of the SSD directory: the kernel holds it once."""
    first, second = make_place("first"), make_place("second")
    for place in (first, second):
        place.file(f"in-{place.folder.name}", b"shared" * 100, ssd=True)
        mount_tree(place.write(), place.tree_mount)
    first.mount_image()
    mount_image(second.image, second.tree_mount, first.objects, first.lazy)
    with (first.image / "in-first").open("rb") as one, (second.image / "in-second").open("rb") as two:
        assert one.read() == two.read() == b"shared" * 100


def test_a_device_of_zeros_is_not_shown(place: Place) -> None:
    """What overlayfs cannot show: in a layer it means that there is nothing of this name."""
    place.put("gone", Inode(stat.S_IFCHR | 0o600, rdev=0, mtime_ns=MTIME))
    place.put("kept", Inode(stat.S_IFBLK | 0o600, rdev=0, mtime_ns=MTIME))
    place.put("below/gone", Inode(stat.S_IFCHR | 0o600, rdev=0, mtime_ns=MTIME))
    place.mount()
    assert names(place.tree_mount) == ["below", "gone", "kept"]
    assert names(place.image) == ["below", "kept"]
    # Below the root overlayfs passes a listing on as it is, and still does not find what it names.
    assert names(place.image / "below") == ["gone"]
    for gone in ("gone", "below/gone"):
        with pytest.raises(FileNotFoundError):
            (place.image / gone).lstat()
