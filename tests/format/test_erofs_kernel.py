"""The kernel's own EROFS driver mounts what the writer makes, straight from a file, and shows every field as the model has it."""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings

from imagefs.digest import digest_of
from imagefs.format.erofs_reader import Tree
from imagefs.format.erofs_writer import write_tree
from imagefs.format.tree import Inode
from tests.format.inode_strategies import Row, describe, inode_trees

_MS_RDONLY: Final = 1
_MNT_DETACH: Final = 2
_ESCAPED: Final = b"trusted.overlay.overlay."


@contextmanager
def mounted(image: bytes | bytearray, folder: Path) -> Iterator[Path]:
    """Mount an image with mount(2): from a file without a loop device, which Linux can since 6.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = folder / "tree", folder / "mnt"
    source.write_bytes(image)
    target.mkdir(exist_ok=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), b"erofs", ctypes.c_ulong(_MS_RDONLY), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source))
    try:
        yield target
    finally:
        libc.umount2(os.fsencode(target), _MNT_DETACH)


@pytest.fixture(scope="module")
def erofs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to mount in; the test is skipped where the kernel cannot mount an EROFS file, or this user may not."""
    folder = tmp_path_factory.mktemp("erofs")
    try:
        with mounted(write_tree(Inode(0o40755, children={})), folder):
            return folder
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENODEV, errno.ENOTBLK, errno.EACCES}:
            raise
        reason = f"the kernel does not mount EROFS from a file here: {error.strerror} (needs root, erofs, Linux 6.12)"
        if os.environ.get("IMAGEFS_REQUIRE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def look(root: Path) -> tuple[dict[bytes, Row], dict[bytes, int]]:
    """Return what the kernel shows, by path, and the inode numbers."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[os.stat_result, int]] = {}
    rows: dict[bytes, Row] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        info = os.lstat(top + path)
        found[path] = info, info.st_ino
        if stat.S_ISDIR(info.st_mode):
            with os.scandir(top + path) as entries:
                pending += [path + b"/" + entry.name for entry in entries]
    links: dict[int, set[bytes]] = {}
    for path, (_, number) in found.items():
        links.setdefault(number, set()).add(path)
    for path, (info, number) in found.items():
        rows[path] = _row(top + path, info, frozenset(links[number]))
    return rows, {path: number for path, (_, number) in found.items()}


def _row(path: bytes, info: os.stat_result, links: frozenset[bytes]) -> Row:
    kind = stat.S_IFMT(info.st_mode)
    xattrs, digest = {}, None
    for text in os.listxattr(path, follow_symlinks=False):
        name, value = os.fsencode(text), os.getxattr(path, text, follow_symlinks=False)
        if name == b"trusted.overlay.metacopy":
            assert value == b""
        elif name == b"trusted.overlay.redirect":
            assert value[:1] == value[3:4] == b"/"
            digest = bytes.fromhex(value.replace(b"/", b"").decode())
        else:
            xattrs[b"trusted.overlay." + name.removeprefix(_ESCAPED) if name.startswith(_ESCAPED) else name] = value
    return Row(
        mode=info.st_mode,
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=info.st_mtime_ns,
        nlink=info.st_nlink,
        rdev=info.st_rdev,
        size=0 if kind == stat.S_IFDIR else info.st_size,
        target=os.readlink(path) if kind == stat.S_IFLNK else b"",  # noqa: PTH115 (a Path would tidy the target up)
        inline=Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG and digest is None else None,
        object=digest,
        xattrs=tuple(sorted(xattrs.items())),
        links=links,
    )


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(root=inode_trees())
def test_the_kernel_shows_every_field(root: Inode, erofs_folder: Path) -> None:
    image = write_tree(root)
    with mounted(image, erofs_folder) as mountpoint:
        rows, numbers = look(mountpoint)
    assert rows == describe(root)
    tree = Tree(image)
    for path, number in numbers.items():
        parent, _, name = path.rpartition(b"/")
        assert number == (tree.lookup(numbers[parent], name) if path else tree.root)


def test_the_kernel_reads_a_hole_where_the_object_is(erofs_folder: Path) -> None:
    """Without overlayfs there is no data; with it, it never looks at this."""
    root = Inode(0o40755, children={b"f": Inode(0o100644, size=10_000, object=digest_of(b"x"))})
    with mounted(write_tree(root), erofs_folder) as mountpoint:
        assert (mountpoint / "f").read_bytes() == bytes(10_000)


def test_a_directory_of_many_blocks(erofs_folder: Path) -> None:
    children = {b"%020d" % number: Inode(0o100644, inline=b"%d" % number) for number in range(0, 40_000, 2)}
    with mounted(write_tree(Inode(0o40755, children=dict(children))), erofs_folder) as mountpoint:
        assert sorted(os.fsencode(path.name) for path in mountpoint.iterdir()) == sorted(children)
        for number in range(0, 40_000, 1998):
            assert (mountpoint / f"{number:020}").read_bytes() == b"%d" % number
            assert not (mountpoint / f"{number + 1:020}").exists()
